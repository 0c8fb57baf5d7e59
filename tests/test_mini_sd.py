"""mini-sd: captions, what it learns from, and its training from nothing to a folder."""

import re

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from vldm_mini.datasets import video  # noqa: E402 - after the check that diffusers is there
from vldm_mini.stable_diffusion import VideoPipeline, captioned, mini, training  # noqa: E402
from vldm_mini.stable_diffusion import captions as words  # noqa: E402
from vldm_mini.stable_diffusion.captions import Facts, captions  # noqa: E402
from vldm_mini.stable_diffusion.tokenizer import (  # noqa: E402
    byte_symbols,
    clip_tokenizer,
    clip_vocabulary,
    read_merges,
)
from vldm_mini.training.randomness import BatchRandom  # noqa: E402
from vldm_mini.training.stages.common import Request  # noqa: E402

CPU = torch.device("cpu")


# -- captions -----------------------------------------------------------------------------------


def everything():
    found = [Facts(action=a, person=p) for a in range(4) for p in range(8)]
    found += [Facts(sign="hello")]
    return found + [Facts(night=night, cars=cars) for night in (False, True) for cars in range(5)]


def test_wordings_for_training_and_those_held_out_never_meet():
    for facts in everything():
        trained, held_out = set(captions(facts)), set(captions(facts, held_out=True))
        assert len(trained) >= 4 and len(held_out) >= 2 and not trained & held_out


def test_a_held_out_wording_uses_words_that_training_knows():
    def tokens(held_out):
        return {word for facts in everything() for text in captions(facts, held_out)
                for word in re.findall(r"\w+", text.lower())}

    assert tokens(True) - tokens(False) <= {"clip", "trip", "forward", "which", "the", "in", "for",
                                            "signs", "says"}


def test_a_caption_names_the_facts():
    assert "Bella waves one hand" in captions(Facts(action=0, person=1))
    assert "a person bends down" in captions(Facts(action=3, person=1))
    assert captions(Facts(action=3, person=8)) == captions(Facts(action=3))
    assert all("sks" in text for text in captions(Facts(action=1), name="sks person"))
    assert "a road at night with two cars" in captions(Facts(night=True, cars=2))
    assert "a road by day with one car" in captions(Facts(night=False, cars=1))
    assert "a road by day with four or more cars" in captions(Facts(night=False, cars=9))
    with pytest.raises(ValueError, match="nothing to say"):
        captions(Facts())


def test_nobody_is_named_twice_and_the_held_out_person_has_no_name():
    assert len(set(words.PEOPLE)) == video.HELD_OUT_PERSON


# -- the tokenizer ------------------------------------------------------------------------------


def test_the_vocabulary_has_a_symbol_for_every_byte_and_clips_size():
    assert len(set(byte_symbols())) == 256
    merges = [("a", "b</w>")]
    assert len(clip_vocabulary(merges)) == 256 * 2 + 1 + 2
    tokenizer = clip_tokenizer(merges, 8)
    ids = tokenizer("ab 挥", padding="max_length").input_ids
    assert len(ids) == 8 and ids[0] == len(tokenizer) - 2 and ids[-1] == len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "ab</w>"


def test_a_file_of_too_few_merges_is_refused(tmp_path):
    import gzip
    path = tmp_path / "merges.gz"
    with gzip.open(path, "wt") as file:
        file.write("version\na b\n")
    assert read_merges(path, 1) == [("a", "b")]
    with pytest.raises(ValueError, match="no list of 2 merges"):
        read_merges(path, 2)


# -- the schedule -------------------------------------------------------------------------------


def test_the_schedulers_noise_is_that_of_training():
    ours, theirs = mini.schedule(), mini.scheduler()
    assert torch.allclose(ours.alpha_tau.square().float(), theirs.alphas_cumprod, atol=1e-6)
    assert float(theirs.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)


# -- what is drawn ------------------------------------------------------------------------------


def clips(n=6, t=9, side=32):
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        frames = torch.randint(256, (t, side, side, 3), generator=generator, dtype=torch.uint8)
        if i % 2:
            facts, source, stride = [Facts(action=i % 4, person=i)] * t, "actions", 2
        else:
            facts = [Facts(night=False, cars=k % 3) for k in range(t)]
            source, stride = "driving", 1
        found.append(captioned.CaptionedClip(frames, facts, source, stride, f"clip {i}"))
    return found


def test_a_batch_holds_windows_of_one_clip_with_a_caption_of_its_middle_frame():
    some, tokenizer = clips(), clip_tokenizer([])
    # the number of the clip and of the frame in place of pictures
    stored = [torch.stack([torch.full((9,), float(i)), torch.arange(9.0)], 1)
              for i in range(len(some))]
    data = captioned.Captioned(some, stored, tokenizer, 3, CPU)
    windows, ids = data.batch(BatchRandom(0, 0, 64, CPU), drop=0.0)
    sources = []
    for window, tokens in zip(windows, ids):
        clip = some[int(window[0, 0])]
        assert (window[:, 0] == window[0, 0]).all()
        assert window[:, 1].diff().tolist() == [clip.stride] * 2
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        known = [said.lower() for said in captions(clip.facts[int(window[1, 1])])]
        assert text.replace(" ", "") in [said.replace(" ", "") for said in known]
        sources.append(clip.source)
    share = sources.count("actions") / len(sources)
    assert 0.3 < share < 0.8                                    # 0.5 / (0.5 + 0.4)
    assert len({tuple(row.tolist()) for row in ids}) > 10


def test_captions_are_dropped_as_often_as_asked():
    some = clips()
    data = captioned.Captioned(some, [torch.zeros(9, 1)] * 6, clip_tokenizer([]), 1, CPU)
    _, ids = data.batch(BatchRandom(0, 0, 400, CPU), drop=0.25)
    empty = (ids == data.texts.ids[0]).all(1).float().mean()
    assert 0.17 < empty < 0.33


def test_frames_of_driving_are_squeezed_to_a_square():
    frames = torch.arange(2 * 4 * 8 * 3, dtype=torch.uint8).view(2, 4, 8, 3)
    got = captioned.square(frames, 4)
    assert got.shape == (2, 4, 4, 3)
    pairs = frames.float().view(2, 4, 4, 2, 3).mean(3)
    assert (got.float() - pairs).abs().max() <= 0.5
    assert captioned.square(got, 4) is got


def test_nothing_held_out_is_trained_on(real_data):
    some = captioned.load(mini.SIZES["s"], ("actions",))
    seen = {(clip.facts[0].person, clip.facts[0].action) for clip in some}
    assert all(person != video.HELD_OUT_PERSON for person, _ in seen)
    assert not seen & set(video.HELD_OUT_PAIRS) and len(seen) == 28


# -- training -----------------------------------------------------------------------------------


def request(folder, **options):
    return Request(data="mini-sd", size="xs", out=folder, progress=False, precision="fp32",
                   **options)


def test_from_nothing_to_a_pipeline_that_samples_videos(tmp_path):
    training.train("mini-sd", request(tmp_path), merges=[], clips=clips())
    from diffusers import StableDiffusionPipeline
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert plain.vae.config.scaling_factor > 0
    image = VideoPipeline.from_pretrained(tmp_path / "pipeline")
    image.set_progress_bar_config(disable=True)
    frames = image("Bella waves one hand", 3, num_inference_steps=2, output_type="pt").frames
    assert frames.shape == (1, 3, 3, 32, 32) and frames.isfinite().all()
    moved = [name for name, p in image.layers.named_parameters() if "conv2.weight" in name]
    assert any(image.layers.get_parameter(name).abs().max() > 0 for name in moved)
    # the frozen parts are what the image stage left
    again = training.trained_pipeline(request(tmp_path))
    for name, value in again.unet.state_dict().items():
        assert torch.equal(value, plain.unet.state_dict()[name]), name


def test_a_stopped_run_goes_on_as_an_unbroken_one(tmp_path, monkeypatch):
    some = clips()
    for name in ("whole", "parts"):
        training.train("mini-sd-autoencoder", request(tmp_path / name), [], some)
    training.train("mini-sd-image", request(tmp_path / "whole", steps=4), [], some)

    from vldm_mini.training import loop
    run_one_step = loop.Run.one_step

    def stop_after_two(run, step):
        if step == 2:
            run.save()
            raise KeyboardInterrupt
        run_one_step(run, step)

    monkeypatch.setattr(loop.Run, "one_step", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        training.train("mini-sd-image", request(tmp_path / "parts", steps=4), [], some)
    monkeypatch.setattr(loop.Run, "one_step", run_one_step)
    training.train("mini-sd-image", request(tmp_path / "parts", steps=4), [], some)
    whole, parts = (training.trained_pipeline(request(tmp_path / name)).unet.state_dict()
                    for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_is_missing_is_said_before_work_starts(tmp_path):
    with pytest.raises(ValueError, match="choose one of mini-sd"):
        training.train("mini-sd-video", request(tmp_path), [], clips())
    with pytest.raises(FileNotFoundError, match="train mini-sd-autoencoder"):
        training.train("mini-sd-image", request(tmp_path), [], clips())
    training.train("mini-sd-autoencoder", request(tmp_path), [], clips())
    with pytest.raises(FileNotFoundError, match="train mini-sd-image"):
        training.train("mini-sd-temporal", request(tmp_path), [], clips())
