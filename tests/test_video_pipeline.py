"""A video pipeline over any Stable Diffusion pipeline: what diffusers users expect of it."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny_sd  # noqa: E402 - after the check that diffusers is there
from vldm_mini.stable_diffusion import VideoPipeline, insert_motion  # noqa: E402
from vldm_mini.stable_diffusion.pipeline import interpolated_prompts  # noqa: E402
from vldm_mini.temporal import TemporalLayers, insert  # noqa: E402

T = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def video_pipeline(make=tiny_sd.pipeline, trained=True, **options):
    pipe = make()
    layers = insert(pipe.unet, text_channels=pipe.unet.config.cross_attention_dim, **options)
    if trained:
        tiny_sd.random_weights(layers)
    return VideoPipeline(pipe, layers.eval())


def run(video, prompt="a dog", frames=T, **options):
    options = dict(generator=seeded(), num_inference_steps=2, output_type="np") | options
    return np.stack(video(prompt, frames, **options).frames)


def images(pipe, prompt="a dog", **options):
    options = dict(generator=seeded(), num_inference_steps=2, output_type="np",
                   num_images_per_prompt=T) | options
    return pipe(prompt, **options).images


@pytest.fixture(scope="module")
def trained():
    return video_pipeline()


# -- frames of a clip are images of a batch ---------------------------------------------------


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler",
                                       "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_fresh_layers_and_image_mode_give_the_images_of_stable_diffusion_exactly(scheduler):
    import diffusers
    video = video_pipeline(trained=False)
    video.scheduler = getattr(diffusers, scheduler).from_config(video.scheduler.config)
    two = ["a dog", "a cat"]
    want = images(video.pipe, two, negative_prompt=["blurred"] * 2)
    assert np.array_equal(run(video, two, negative_prompt="blurred").reshape(want.shape), want)
    tiny_sd.random_weights(video.layers)
    got = run(video, two, negative_prompt="blurred", image_mode=True)
    assert np.array_equal(got.reshape(want.shape), want)
    assert np.array_equal(run(video, two, negative_prompt="blurred", alpha=1.0).reshape(want.shape),
                          want)
    moved = run(video, two, negative_prompt="blurred").reshape(want.shape)
    assert np.abs(moved - want).max() > 0.01
    # outside the video call the U-Net is the image model again
    assert np.array_equal(images(video.pipe, two, negative_prompt=["blurred"] * 2), want)


def test_each_prompt_has_a_video_of_its_own(trained):
    noise = torch.randn(2, T, 4, 8, 8, generator=seeded(1))
    both = run(trained, ["a dog", "a cat"], latents=noise)
    for i, prompt in enumerate(("a dog", "a cat")):
        assert np.abs(run(trained, prompt, latents=noise[i:i + 1])[0] - both[i]).max() < 1e-4
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_another_text_for_the_temporal_layers_changes_the_video_alone(trained):
    other = trained.encode_prompt("a bird", "cpu", 1, False)[0]
    none = trained.encode_prompt("", "cpu", 1, False)[0]
    text = torch.cat([none, other])
    assert np.abs(run(trained, temporal_prompt_embeds=text) - run(trained)).max() > 1e-4
    assert np.array_equal(run(trained, temporal_prompt_embeds=text, image_mode=True),
                          run(trained, image_mode=True))
    same = torch.cat([none, trained.encode_prompt("a dog", "cpu", 1, False)[0]])
    assert np.abs(run(trained, temporal_prompt_embeds=same) - run(trained)).max() < 1e-6


def test_a_prompt_can_change_over_the_frames(trained):
    text = interpolated_prompts(trained.pipe, "a dog", "a cat", T)
    assert text.shape == (1, T, 77, tiny_sd.TEXT)
    ends = [trained.encode_prompt(p, "cpu", 1, False)[0][0] for p in ("a dog", "a cat")]
    assert torch.equal(text[0, 0], ends[0]) and torch.allclose(text[0, -1], ends[1])
    no_text = trained.encode_prompt("", "cpu", T, False)[0].unsqueeze(0)
    got = run(trained, None, prompt_embeds=text, negative_prompt_embeds=no_text, image_mode=True)
    assert np.abs(got[0, 0] - run(trained, image_mode=True)[0, 0]).max() < 1e-5


def test_more_frames_than_trained_with_banded_attention(trained):
    noise = torch.randn(1, 6, 4, 8, 8, generator=seeded(2))
    far = noise.clone()
    far[:, -1] += 1
    # group norms of TemporalConv pool over all frames: only the attention is banded
    video = video_pipeline(conv=None)
    options = dict(frames=6, num_inference_steps=1, guidance_scale=1.0)
    change = np.abs(run(video, latents=noise, reach=0, **options)
                    - run(video, latents=far, reach=0, **options))
    assert change[0, 0].max() < 1e-6 < change[0, -1].max()
    everywhere = np.abs(run(video, latents=noise, **options) - run(video, latents=far, **options))
    assert everywhere[0, 0].max() > 1e-6


def test_context_frames_reach_the_temporal_layers():
    video = video_pipeline(context_channels=5)
    with torch.no_grad():
        known = torch.rand(1, T, 3, 16, 16, generator=seeded(3)) * 2 - 1
    mask = torch.tensor([1.0, 0.0, 0.0])
    got = run(video, context=known, context_mask=mask)
    assert np.abs(got - run(video)).max() > 1e-4
    other = known.clone()
    other[:, 1:] = 0                               # not known: must not matter
    assert np.array_equal(run(video, context=other, context_mask=mask), got)
    with pytest.raises(ValueError, match="context_mask"):
        run(video, context=known)


# -- what diffusers users expect ----------------------------------------------------------------


def test_output_types_and_chunks(trained):
    whole = run(trained)
    assert whole.shape == (1, T, 16, 16, 3) and 0 <= whole.min() and whole.max() <= 1
    assert np.abs(run(trained, decode_chunk_size=1) - whole).max() < 1e-5
    pil = trained("a dog", T, generator=seeded(), num_inference_steps=2).frames
    assert [len(clip) for clip in pil] == [T] and pil[0][0].size == (16, 16)
    options = dict(generator=seeded(), num_inference_steps=2)
    tensor = trained("a dog", T, output_type="pt", **options).frames
    assert tensor.shape == (1, T, 3, 16, 16)
    z, flags = trained("a dog", T, output_type="latent", return_dict=False, **options)
    assert z.shape == (1, T, 4, 8, 8) and flags is None


def test_the_frames_can_be_exported(trained, tmp_path):
    from diffusers.utils import export_to_gif
    frames = trained("a dog", T, num_inference_steps=1).frames[0]
    assert open(export_to_gif(frames, str(tmp_path / "a.gif")), "rb").read(3) == b"GIF"


def test_callbacks_see_every_step_and_may_change_latents(trained):
    seen = []

    def note(pipe, step, tau, tensors):
        seen.append((step, tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    trained.scheduler = type(trained.scheduler).from_config(trained.scheduler.config)
    z = trained("a dog", T, num_inference_steps=2, callback_on_step_end=note, output_type="latent",
                generator=seeded()).frames
    assert [step for step, _ in seen][:2] == [0, 1] and seen[0][1] == (T, 4, 8, 8)
    assert z.shape == (1, T, 4, 8, 8)


def test_a_saved_pipeline_loads_here_and_in_plain_diffusers(tmp_path, trained):
    from diffusers import StableDiffusionPipeline
    trained.save_pretrained(tmp_path)
    again = VideoPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(run(again), run(trained))
    plain = StableDiffusionPipeline.from_pretrained(tmp_path)
    plain.set_progress_bar_config(disable=True)
    assert np.array_equal(images(plain), images(trained.pipe))


def test_a_folder_written_by_plain_diffusers_loads_with_fresh_layers(tmp_path):
    plain = tiny_sd.pipeline()
    want = images(plain)
    plain.save_pretrained(tmp_path)
    video = VideoPipeline.from_pretrained(str(tmp_path))
    video.set_progress_bar_config(disable=True)
    assert np.array_equal(run(video)[0], want)


def test_a_truncated_or_wrong_folder_and_a_missing_network_are_said_clearly(tmp_path):
    plain = tiny_sd.pipeline()
    plain.save_pretrained(tmp_path / "sd")
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        VideoPipeline.from_pretrained(tmp_path / "sd" / "unet")
    weights = tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="sd"):
        VideoPipeline.from_pretrained(tmp_path / "sd")
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        VideoPipeline.from_pretrained(tmp_path / "sd")
    index = tmp_path / "sd" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "NoPipeline"}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        VideoPipeline.from_pretrained(tmp_path / "sd")


def test_without_network_a_name_of_the_hub_is_answered_with_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="not a folder here.*give a folder"):
        VideoPipeline.from_pretrained("nobody/no-such-pipeline")


def test_bad_requests_are_refused_before_work_starts(trained):
    with pytest.raises(ValueError, match="at least one frame"):
        trained("a dog", 0)
    with pytest.raises(ValueError, match="give num_frames"):
        trained("a dog", 2, num_images_per_prompt=2)
    with pytest.raises(ValueError, match="latents are"):
        trained("a dog", 2, latents=torch.zeros(1, 3, 4, 8, 8))
    with pytest.raises(ValueError, match="not inserted"):
        VideoPipeline(tiny_sd.pipeline(), trained.layers)
    with pytest.raises(ValueError, match="has no U-Net"):
        VideoPipeline(torch.nn.Linear(1, 1), trained.layers)


@pytest.mark.parametrize("prompt", ["", "dog " * 200, "qqqzzx blorft", "挥手的人", "🎉👋", "\n\t"])
def test_any_text_is_a_prompt(trained, prompt):
    got = run(trained, prompt, num_inference_steps=1)
    assert np.isfinite(got).all() and got.shape == (1, T, 16, 16, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats(dtype):
    video = video_pipeline().to(dtype=dtype)
    assert next(video.layers.parameters()).dtype == dtype
    assert np.isfinite(run(video)).all()


def test_attention_slicing_vae_slicing_and_freeu(trained):
    want = run(trained)
    trained.enable_attention_slicing()
    trained.vae.enable_slicing()
    assert np.abs(run(trained) - want).max() < 1e-4
    trained.disable_attention_slicing()
    trained.vae.disable_slicing()
    trained.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert np.abs(run(trained) - want).max() > 1e-4
    trained.disable_freeu()
    assert np.abs(run(trained) - want).max() < 1e-4


def test_a_lora_of_the_plain_backbone_still_loads(trained, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    plain = tiny_sd.pipeline()
    plain.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"],
                                      init_lora_weights=False))
    lora = convert_state_dict_to_diffusers(get_peft_model_state_dict(plain.unet))
    plain.save_lora_weights(str(tmp_path), unet_lora_layers=lora)
    video, before = video_pipeline(), run(trained)
    video.load_lora_weights(str(tmp_path))
    assert np.abs(run(video) - before).max() > 1e-4
    want = images(plain)
    assert np.abs(run(video, image_mode=True)[0] - want).max() < 1e-5
    video.unload_lora_weights()
    assert np.abs(run(video) - before).max() < 1e-5


def test_weights_that_wait_on_another_device_until_they_are_used(trained):
    from accelerate import cpu_offload
    want = run(trained)
    video = video_pipeline()
    cpu_offload(video.unet, execution_device="cpu")
    assert all(p.device.type == "meta" for p in video.unet.parameters())
    assert np.array_equal(run(video), want)


def test_a_compiled_unet(trained):
    want = run(trained)
    video = video_pipeline()
    video.unet = torch.compile(video.unet, backend="eager")
    got = run(video)
    assert np.abs(got - want).max() < 1e-4
    assert np.abs(run(video, image_mode=True) - want).max() > 0.01


def test_a_peft_model_of_the_unet_trains_only_the_lora(trained):
    from peft import LoraConfig, get_peft_model
    video = video_pipeline()
    video.unet = get_peft_model(video.unet, LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    assert np.abs(run(video) - run(trained)).max() < 1e-5
    learning = [name for name, p in video.unet.named_parameters() if p.requires_grad]
    assert learning and all("lora" in name for name in learning)


# -- other pipelines ------------------------------------------------------------------------------


def test_stable_diffusion_xl():
    video = video_pipeline(tiny_sd.pipeline_xl, trained=False)
    options = dict(height=16, width=16)
    want = images(video.pipe, **options)
    assert np.array_equal(run(video, **options)[0], want)
    tiny_sd.random_weights(video.layers)
    assert np.abs(run(video, **options)[0] - want).max() > 0.01


def test_controlnet_with_a_picture_for_each_frame():
    video = video_pipeline(tiny_sd.pipeline_controlnet, trained=False)
    control = torch.rand(1, T, 3, 16, 16, generator=seeded(4))
    want = video.pipe(["a dog"] * T, image=control[0], generator=seeded(), num_inference_steps=2,
                      output_type="np").images
    assert np.array_equal(run(video, image=control)[0], want)
    assert np.abs(run(video, image=control.flip(1))[0] - want).max() > 1e-4
    tiny_sd.random_weights(video.layers)
    assert np.abs(run(video, image=control)[0] - want).max() > 0.01


def test_the_latent_upsampler_of_stable_diffusion_enlarges_a_video():
    video = video_pipeline(tiny_sd.pipeline_upscale, trained=False)
    small = torch.rand(1, T, 3, 8, 8, generator=seeded(5)) * 2 - 1
    options = dict(noise_level=20, num_inference_steps=2, output_type="np")
    want = video.pipe(["a dog"] * T, image=small[0], generator=seeded(), **options).images
    got = run(video, image=small, noise_level=20)[0]
    assert got.shape == want.shape == (T, 16, 16, 3) and np.array_equal(got, want)
    tiny_sd.random_weights(video.layers)
    assert np.abs(run(video, image=small, noise_level=20)[0] - want).max() > 0.01


def test_motion_modules_give_the_videos_of_animatediff():
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
    torch.manual_seed(0)
    adapter = tiny_sd.random_weights(MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_max_seq_length=8))
    pipe = tiny_sd.pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = AnimateDiffPipeline(
        vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, unet=pipe.unet,
        motion_adapter=adapter, scheduler=pipe.scheduler)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, T, 4, 8, 8, generator=seeded(6))
    options = dict(num_inference_steps=3, output_type="np", guidance_scale=3.0)
    want = theirs("a dog", num_frames=T, latents=noise.transpose(1, 2), height=16, width=16,
                  **options).frames[0]
    video = VideoPipeline(pipe, insert_motion(pipe.unet, adapter))
    got = video("a dog", T, latents=noise, **options).frames[0]
    assert np.abs(got - want).max() < 1e-4
    assert isinstance(video.layers, TemporalLayers)


# -- the command --------------------------------------------------------------------------------


def command(*words):
    from vldm_mini.cli import main
    return main(["sample", *map(str, words)])


def test_the_command_samples_a_video_of_a_prompt(tmp_path, trained, capsys):
    trained.save_pretrained(tmp_path / "sd")
    out = tmp_path / "out"
    assert command("--sd", tmp_path / "sd", "a dog", "--steps", 2, "--frames", 3,
                   "--out", out) == 0
    assert sorted(f.name for f in out.iterdir()) == ["slice.png", "strip.png", "video.webp"]
    assert "done" in capsys.readouterr().out


def test_the_command_takes_a_motion_adapter(tmp_path, capsys):
    from diffusers import MotionAdapter
    tiny_sd.pipeline().save_pretrained(tmp_path / "sd")
    MotionAdapter(block_out_channels=(32, 64), motion_layers_per_block=1,
                  motion_num_attention_heads=2).save_pretrained(tmp_path / "motion")
    words = ("--sd", tmp_path / "sd", "--motion-adapter", tmp_path / "motion", "a dog",
             "--steps", 1, "--frames", 2, "--out", tmp_path / "out")
    assert command(*words) == 0
    assert (tmp_path / "out" / "video.webp").is_file()
    capsys.readouterr()
    assert command(*words, "--temporal", tmp_path) == 2
    assert "give one of them" in capsys.readouterr().err


def test_the_command_lists_and_dry_runs_the_public_checkpoints(capsys):
    assert command("--sd-list") == 0
    listed = capsys.readouterr().out
    assert "CompVis/stable-diffusion-v1-4" in listed and "sd2-community" in listed
    assert command("--dry-run") == 0
    text = capsys.readouterr().out
    assert "649,687,078" in text and "656,076,838" in text and "859,520,964" in text
    assert command("--dry-run", "--sd", "nothing") == 2
    assert "is none of CompVis" in capsys.readouterr().err


def test_the_command_says_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command("--sd", tmp_path) == 2
    assert "needs a prompt" in capsys.readouterr().err
    assert command("a dog") == 2
    assert "go with --sd NAME" in capsys.readouterr().err
    assert command("--sd", "nobody/nothing", "a dog", "--out", tmp_path / "out") == 2
    assert "not a folder here" in capsys.readouterr().err


def test_the_sizes_in_the_table_are_those_of_the_networks():
    from diffusers import AutoencoderKL, MotionAdapter
    from transformers import CLIPTextConfig, CLIPTextModel

    from vldm_mini.stable_diffusion.checkpoints import ADAPTER_MILLIONS, CHECKPOINTS, empty_unet

    def millions(module):
        return sum(p.numel() for p in module.parameters()) / 1e6

    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2)
        texts = {768: CLIPTextModel(CLIPTextConfig(
                     hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                     num_attention_heads=12)),
                 1024: CLIPTextModel(CLIPTextConfig(
                     hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                     num_attention_heads=16))}
        adapter = MotionAdapter()
    assert millions(adapter) == pytest.approx(ADAPTER_MILLIONS, abs=0.1)
    for one in CHECKPOINTS:
        assert millions(empty_unet(one)) == pytest.approx(one.parameters["unet"], abs=0.1)
        assert millions(autoencoder) == pytest.approx(one.parameters["vae"], abs=0.1)
        assert millions(texts[one.text_channels]) == pytest.approx(
            one.parameters["text_encoder"], abs=0.1)
