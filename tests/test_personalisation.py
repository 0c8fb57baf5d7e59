"""DreamBooth on a small pipeline: what learns, what stays, what is kept."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests import tiny_sd  # noqa: E402 - after the check that diffusers is there
from vldm_mini.stable_diffusion import VideoPipeline, personalisation  # noqa: E402
from vldm_mini.stable_diffusion.personalisation import DreamBooth  # noqa: E402
from vldm_mini.temporal import insert  # noqa: E402

CAPTIONS = ["sks person waves", "sks person bends"]


def stills():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def states(pipe):
    return {f"{part}.{name}": value.clone() for part in ("unet", "text_encoder", "vae")
            for name, value in getattr(pipe, part).state_dict().items()}


def changed(pipe, before):
    return {name for name, value in states(pipe).items() if not torch.equal(value, before[name])}


def prior(pipe, n=4):
    texts = ["a person waves"] * n
    return personalisation.prior_pictures(pipe, texts, num_inference_steps=1), texts


def test_the_loss_on_the_stills_falls_and_the_autoencoder_stays():
    pipe = tiny_sd.pipeline()
    before = states(pipe)
    losses = personalisation.personalise(
        pipe, stills(), CAPTIONS, how=DreamBooth(steps=60, lr=2e-3, prior_weight=0))
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])
    moved = changed(pipe, before)
    assert any(name.startswith("unet") for name in moved)
    assert any(name.startswith("text_encoder") for name in moved)
    assert not any(name.startswith("vae") for name in moved)


def test_the_same_seed_gives_the_same_weights_and_the_prior_counts():
    def trained(**options):
        pipe = tiny_sd.pipeline()
        z, texts = prior(pipe)
        how = DreamBooth(steps=2, lr=1e-3, **options)
        personalisation.personalise(pipe, stills(), CAPTIONS, z, texts, how)
        return pipe.unet.conv_in.weight

    assert torch.equal(trained(), trained())
    assert not torch.equal(trained(), trained(prior_weight=0))
    assert not torch.equal(trained(), trained(seed=1))


def test_the_text_encoder_can_stay():
    pipe = tiny_sd.pipeline()
    before = states(pipe)
    how = DreamBooth(steps=1, prior_weight=0, text_encoder=False)
    personalisation.personalise(pipe, stills(), CAPTIONS, how=how)
    assert not any(name.startswith("text_encoder") for name in changed(pipe, before))


def test_a_lora_learns_and_the_weights_below_stay():
    pipe = tiny_sd.pipeline()
    before = states(pipe)
    want = pipe("sks person", num_inference_steps=1, output_type="np",
                generator=torch.Generator().manual_seed(0)).images
    how = DreamBooth(steps=12, lr=2e-2, prior_weight=0, lora_rank=2)
    personalisation.personalise(pipe, stills(), CAPTIONS, how=how)
    after = states(pipe)
    for name, value in before.items():
        kept = after.get(name)
        if kept is None:                                 # peft puts the layer one level deeper
            head, _, last = name.rpartition(".")
            kept = after[f"{head}.base_layer.{last}"]
        assert torch.equal(kept, value), name
    got = pipe("sks person", num_inference_steps=1, output_type="np",
               generator=torch.Generator().manual_seed(0)).images
    assert abs(got - want).max() > 1e-4


def test_what_needed_gradients_before_needs_them_afterwards():
    pipe = tiny_sd.pipeline()
    pipe.unet.requires_grad_(False)
    personalisation.personalise(pipe, stills(), CAPTIONS, how=DreamBooth(steps=1, prior_weight=0))
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    assert all(p.requires_grad for p in pipe.text_encoder.parameters())


def test_the_difference_is_small_and_comes_back(tmp_path):
    pipe = tiny_sd.pipeline()
    base = personalisation.untrained_copy(pipe)
    personalisation.personalise(pipe, stills(), CAPTIONS,
                                how=DreamBooth(steps=5, lr=1e-3, prior_weight=0))
    want = states(pipe)
    personalisation.save_difference(pipe, base, tmp_path / "sks.safetensors")
    other = tiny_sd.pipeline()
    personalisation.load_difference(other, tmp_path / "sks.safetensors")
    for name, value in states(other).items():
        error = (value.float() - want[name].float()).abs().max()
        assert error <= 2e-4, (name, float(error))
    wrong = tmp_path / "wrong.safetensors"
    from vldm_mini.weights import save_tensors
    save_tensors(wrong, {"unet.nothing": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="another model"):
        personalisation.load_difference(other, wrong)


def test_temporal_layers_keep_the_text_that_they_were_trained_with():
    pipe = tiny_sd.pipeline()
    original = personalisation.untrained_copy(pipe)["text_encoder"]
    personalisation.personalise(pipe, stills(), CAPTIONS,
                                how=DreamBooth(steps=5, lr=1e-2, prior_weight=0))
    text = personalisation.texts_for_time(pipe, original, ["a person waves"])
    assert text.shape == (2, 77, tiny_sd.TEXT)
    own = pipe.encode_prompt("a person waves", "cpu", 1, False)[0]
    assert (text[1:] - own).abs().max() > 1e-3
    plain = tiny_sd.pipeline().encode_prompt("a person waves", "cpu", 1, False)[0]
    assert torch.allclose(text[1:], plain, atol=1e-6)
    layers = tiny_sd.random_weights(insert(pipe.unet, text_channels=tiny_sd.TEXT))
    video = VideoPipeline(pipe, layers)
    frames = video("sks person waves", 2, temporal_prompt_embeds=text, num_inference_steps=1,
                   output_type="pt").frames
    assert frames.isfinite().all()


def test_numbers_that_do_not_fit_are_refused():
    pipe = tiny_sd.pipeline()
    with pytest.raises(ValueError, match="2 stills and 1 captions"):
        personalisation.personalise(pipe, stills(), CAPTIONS[:1])
    with pytest.raises(ValueError, match="prior_weight=0"):
        personalisation.personalise(pipe, stills(), CAPTIONS)
