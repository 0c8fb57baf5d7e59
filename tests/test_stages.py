"""The three stages on a folder of small made films: what they leave behind, what they leave alone, what they learn."""
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import copies, made_folder, normal, same
from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder, PatchCritic, VideoDecoder
from vldm_mini.boxes import BoxImageLDM, box_map
from vldm_mini.datasets import driving, video
from vldm_mini.datasets.driving import DrivingClip
from vldm_mini.pipeline import VideoLDM
from vldm_mini.temporal import TemporalLayers, VideoModel, insert, temporal_parameters
from vldm_mini.training import Record, Settings, recipes, rng
from vldm_mini.training.recipes import (
    DRIVING,
    SIZES,
    TEMPORAL_DIFFERENCE_WEIGHT,
    Latents,
    boxes_at,
    clips_at,
    diffusion_loss,
    draw_tau,
    draw_windows,
    drop_labels,
    settings_for,
    temporal_difference_error,
)
from vldm_mini.unet import UNet

XS, STEPS = SIZES["xs"], 8
THREE = {name: recipes.STAGES[name] for name in ("autoencoder", "image", "temporal")}
CONTEXT_STAGES = {name: recipes.STAGES[name] for name in ("decoder", "prediction", "interpolation")}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return str(made_folder(tmp_path_factory.mktemp("films")))


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """All three stages at size xs. -> (folder, records, the backbone that the temporal stage trained phi on)."""
    out, seen = tmp_path_factory.mktemp("run"), []
    records = [train(films, "xs", out, STEPS) for train in (recipes.train_autoencoder, recipes.train_image)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "insert", lambda backbone, **dial: seen.append(backbone) or insert(backbone, **dial))
        records.append(recipes.train_temporal(films, "xs", out, STEPS))
    return out, dict(zip(THREE, records)), seen[0]


# -- end to end -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", THREE)
def test_each_stage_leaves_weights_config_card_and_record(run, stage):
    out, records, _ = run
    names = {path.name for path in (out / stage).iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "record.json", "state.pt"} <= names
    assert not [name for name in names if name.endswith(".part")]
    card = (out / stage / "README.md").read_text()
    assert f"`python -m vldm_mini train {stage} --data" in card and "Licence" in card and "Took" in card
    assert Record.load(out / stage) == records[stage]
    assert all(torch.tensor(list(row["losses"].values())).isfinite().all() for row in records[stage].rows)
    assert (out / stage / "record.json").stat().st_size < 1e6


def test_from_the_folder_of_a_run_come_films_of_what_was_asked_for(run):
    model = VideoLDM.from_pretrained(str(run[0]))
    assert [(name, tuple(classes)) for name, classes in model.config.label_names] == [("class", ("left", "right"))]
    assert (model.config.pixels, model.config.frames, model.config.fps) == (32, 4, 12.5)        # 25 a second, every 2nd
    film = model.generate(model.labels(**{"class": "right"}), steps=2)
    assert film.shape == (1, 4, 3, 32, 32) and film.abs().max() <= 1 and film.isfinite().all()


def test_a_stage_that_is_done_is_not_trained_again(run, films):
    out, records, _ = run
    before = (out / "image" / "model.safetensors").read_bytes()
    assert recipes.train_image(films, "xs", out, STEPS).rows == records["image"].rows
    assert (out / "image" / "model.safetensors").read_bytes() == before


# -- stage by stage ---------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_latents_have_mean_0_and_variance_1_on_the_training_frames(run, films):
    model = Autoencoder.from_pretrained(run[0] / "autoencoder")
    frames = torch.cat([clip.frames for clip in video.split(video.load(films, size=32))[0]])
    z = model.encode(video.to_float(frames))
    assert float(z.mean()) == pytest.approx(0, abs=0.05) and float(z.std()) == pytest.approx(1, abs=0.05)
    raw = model.posterior(video.to_float(frames)).mean
    assert abs(float(raw.std()) - 1) > 0.1                                  # so the scale had something to do


def test_the_critic_of_the_autoencoder_steps_in_the_second_half_and_moves(run):
    out, records, _ = run
    torch.manual_seed(0)
    Autoencoder(XS.autoencoder)
    fresh, end = copies(PatchCritic()), weights.load_state(out / "autoencoder" / "state.pt")
    assert [name for name, x in end["modules"][1].items() if torch.equal(x, fresh[name])] == []
    assert {int(s["step"]) for s in end["optimizers"][-1]["state"].values()} == {STEPS // 2}
    assert [row["step"] for row in records["autoencoder"].rows if "critic" in row["losses"]] == [5, 6, 7, 8]


def test_temporal_training_leaves_every_spatial_weight_as_it_was_to_the_bit(run):
    out, _, backbone = run
    assert same(copies(backbone), copies(UNet.from_pretrained(out / "image")))
    assert not any(p.requires_grad for p in backbone.parameters())
    saved = weights.load_tensors(out / "temporal" / "model.safetensors")
    assert all(name.startswith("mixes.") for name in saved)


@torch.no_grad()
def test_after_the_recipe_alpha_1_is_the_image_model_to_the_bit_and_the_learned_alpha_is_not(run):
    theta = UNet.from_pretrained(run[0] / "image")
    z, tau = normal(2, 4, 4, 8, 8), torch.tensor([300, 800])
    image = theta(z.flatten(0, 1), tau.repeat_interleave(4)).unflatten(0, (2, 4))
    model = VideoModel(theta, TemporalLayers.from_pretrained(run[0] / "temporal", theta))
    assert not torch.equal(model(z, tau), image)
    model.layers.set_alpha(1)
    assert torch.equal(model(z, tau), image)


def test_the_recorder_keeps_alpha_of_every_layer_and_every_alpha_moves(run):
    rows = run[1]["temporal"].rows
    assert len(rows[0]["alpha"]) == 12 and rows[0]["alpha"].keys() == rows[-1]["alpha"].keys()
    assert all(rows[0]["alpha"][name] != rows[-1]["alpha"][name] for name in rows[0]["alpha"])


@pytest.mark.parametrize("stage, columns", [("image", 8), ("temporal", 4)])
def test_strips_show_the_same_noise_at_growing_intervals(run, stage, columns):
    from PIL import Image
    out, records, _ = run
    strips = [out / stage / name for name in records[stage].strips]
    assert strips[0].name == "strip_000001.webp" and strips[-1].name == "strip_000008.webp" and len(strips) > 5
    with Image.open(strips[-1]) as picture:
        assert picture.size == (columns * 32, 4 * 32)


# -- the door ---------------------------------------------------------------------------------------------------------

def test_a_stage_out_of_order_says_which_comes_first(films, run, tmp_path):
    for train in (recipes.train_image, recipes.train_temporal):
        with pytest.raises(FileNotFoundError, match="no autoencoder in .*: python -m vldm_mini train autoencoder"):
            train(films, "xs", tmp_path)
    shutil.copytree(run[0] / "autoencoder", tmp_path / "autoencoder")
    with pytest.raises(FileNotFoundError, match="no image model in .*; first: python -m vldm_mini train image"):
        recipes.train_temporal(films, "xs", tmp_path)


@pytest.mark.parametrize("train", THREE.values(), ids=THREE)
def test_an_unknown_size_is_refused_with_those_that_exist(films, tmp_path, train):
    with pytest.raises(ValueError, match="unknown size 'huge'; choose one of xs, s, m, paper"):
        train(films, "huge", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_judges_judge_actions_and_nothing_else(films, tmp_path):
    with pytest.raises(ValueError, match="the classifiers know .*`actions`, and `driving`, not .*--data actions"):
        recipes.train_classifiers(films, "xs", tmp_path)


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    """All stages of `driving` at size xs, on three clips of five frames. -> folder."""
    out, few = tmp_path_factory.mktemp("drives"), [DrivingClip(seed, 5, 32) for seed in (1, 3, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "load_clips", lambda data, dial: (few, few[:1]))
        patch.setattr(recipes.driving, "seeds", lambda split, n, first=0: [1, 3])
        for train in (*THREE.values(), recipes.train_boxes, *CONTEXT_STAGES.values()):
            train("driving", "xs", out, 2)
        patch.setattr(recipes, "encode_clips", None)                                # from the cache, the second time
        return out, few, recipes.training_latents("driving", DRIVING["xs"], out)


def test_driving_trains_and_its_films_are_twice_as_wide_as_high(drives):
    model = VideoLDM.from_pretrained(str(drives[0]))
    assert (model.config.pixels, model.config.width, model.config.fps) == (32, 64, 1.875)
    assert model.generate(model.labels(light="night", cars=3), steps=1).shape == (1, 4, 3, 32, 64)
    boxes = BoxImageLDM.from_pretrained(str(drives[0]))
    frame = boxes.generate(boxes.labels(light="day"), boxes=[[(0.1, 0.4, 0.3, 0.7)]], steps=1)
    assert frame.shape == (1, 1, 3, 32, 64)


def test_driving_trains_the_stages_of_long_films_and_they_make_one(drives):
    out = drives[0]
    model = VideoLDM.from_pretrained(str(out))
    assert set(model.context_models) == {"prediction", "interpolation"} and model.decoder.net is not None
    assert model.smooth_video(model.labels(light="day"), steps=1).shape == (1, 16 * 3 + 1, 3, 32, 64)
    assert same(copies(model.theta), copies(UNet.from_pretrained(out / "image")))
    for stage in CONTEXT_STAGES:
        card = (out / stage / "README.md").read_text()
        assert f"`python -m vldm_mini train {stage} --data driving" in card


def test_windows_to_interpolate_are_five_frames_at_both_rates_and_cached_apart(drives):
    clips = [DrivingClip(1, 5, 32, fps, start=3) for fps in recipes.INTERPOLATION_FPS]
    assert recipes.INTERPOLATION_FPS == (7.5, 30) and len({clip.name for clip in clips}) == 2
    assert clips[0].times.tolist() == pytest.approx([3, 3 + 1 / 7.5, 3 + 2 / 7.5, 3 + 3 / 7.5, 3 + 4 / 7.5])
    z = normal(2, 5, 4, 8, 16)
    told = recipes.interpolation_context(z, [(6, slice(0, 5)), (7, slice(0, 5))], [rng(0, 0, 0), rng(0, 0, 1)])
    assert told["regime"].tolist() == [0, 1], "even films are at 7.5 a second, odd ones at 30"
    assert (told["context"][:, :, 1:4] == 0).all() and (told["context"][:, 4, [0, 4]] > 0).all()


def test_context_is_given_as_often_as_p_s_says_and_clean_three_times_in_four():
    z = normal(1, 4, 4, 2, 2).expand(3000, -1, -1, -1, -1)
    told = recipes.prediction_context(z, None, [rng(0, 0, k) for k in range(3000)])["context"]
    size, level = (told[:, 4, :, 0, 0] > 0).sum(1), told[:, 4, 0, 0, 0]
    share = [float((size == n).float().mean()) for n in range(4)]
    assert share == pytest.approx([*recipes.CONTEXT_ODDS, 0], abs=0.03)
    assert float((level[size > 0] == 1).float().mean()) == pytest.approx(0.75, abs=0.03)
    clean = told[(level == 1) & (size == 2)]
    assert torch.equal(clean[:, :4, :2].transpose(1, 2), z[:len(clean), :2]), "clean means clean, to the bit"


def test_half_of_the_clips_are_told_frames_as_the_model_makes_them():
    z, seen = normal(1, 6, 4, 2, 2).expand(400, -1, -1, -1, -1), []

    def model(noisy, tau):
        seen.append((noisy, tau))
        return torch.zeros_like(noisy)                                   # v = 0: its answer is alpha_tau times what it sees
    told = recipes.prediction_context(z, None, [rng(0, 0, k) for k in range(400)], model, odds=(0.0, 0.0, 1.0))["context"]
    (noisy, tau), = seen
    assert noisy.shape[1:] == (4, 4, 2, 2) and float(tau.max()) < recipes.SELF_GENERATED_TAU
    assert len(noisy) / 400 == pytest.approx(recipes.SELF_GENERATED_SHARE, abs=0.07)
    clean = told[told[:, 4, 0, 0, 0] == 1, :4, :2].transpose(1, 2)
    as_it_is = (clean == z[0, :2]).flatten(1).all(1)
    assert float(as_it_is.float().mean()) == pytest.approx(1 - recipes.SELF_GENERATED_SHARE, abs=0.1)
    answers = recipes.SCHEDULE.alpha_tau[tau].float()[:, None, None, None, None] * noisy[:, :2]
    assert all((one - answers).abs().amax((1, 2, 3, 4)).min() < 1e-5 for one in clean[~as_it_is])
    assert torch.equal(z[0], normal(1, 6, 4, 2, 2)[0]), "what is to be learnt stays the true film"


def test_only_driving_can_be_interpolated(films, tmp_path):
    with pytest.raises(ValueError, match="frames at 7.5 and 30 a second"):
        recipes.train_interpolation(films, "xs", tmp_path)


def test_the_critic_of_the_temporal_decoder_steps_and_the_encoder_does_not(run, films, tmp_path):
    out = run[0]
    before = copies(Autoencoder.from_pretrained(out / "autoencoder"))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "VideoDecoder", lambda model, layers: seen.append(model) or VideoDecoder(model, layers))
        recipes.train_decoder(films, "xs", out, STEPS)
    assert same(copies(seen[0]), before), "encoder and decoder are the plain ones to the bit"
    torch.manual_seed(0)
    insert(Autoencoder.from_pretrained(out / "autoencoder").decoder, attention=None, space=3)
    fresh, end = copies(PatchCritic(dims=3)), weights.load_state(out / "decoder" / "state.pt")
    assert [name for name, x in end["modules"][1].items() if torch.equal(x, fresh[name])] == []
    assert not [name for name, x in end["modules"][0].items() if name.endswith("conv2.weight") and x.abs().max() == 0]
    (out / "decoder").rename(tmp_path / "decoder")                              # the other tests' run has none


def test_the_decoder_learns_from_latents_with_noise_of_its_own_in_each_frame(run):
    model, seen = Autoencoder.from_pretrained(run[0] / "autoencoder"), []

    class Watched(VideoDecoder):
        def forward(self, z):
            seen.append(z)
            return super().forward(z)
    still = torch.full((4, 16, 16, 3), 90, dtype=torch.uint8)                   # nothing moves: all frames are one
    objective = recipes.decoder_objectives(Watched(model), model.decoder, model.decoder.last_layer, PatchCritic(), [still],
                                     Settings(steps=100, batch=2), 4)[0]
    for step in (0, 0, 1):
        objective.loss(step, [0, 1])
    noise = seen[0] - model.encode(video.to_float(still[:1]))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2]), "a function of step and sample"
    assert noise.flatten(2).std(2).max() < 1.5 * recipes.DECODER_NOISE and noise[0].std() != noise[1].std()
    assert (noise[:, 1:] - noise[:, :-1]).flatten(2).abs().amax(2).min() > 0, "another in each frame"


def test_what_is_kept_of_driving_is_what_the_scenes_say(drives):
    _, few, found = drives
    assert found.labels.shape == (3, 5, 2) and found.words == driving.LABEL_NAMES and found.fps == 1.875
    for clip, labels, boxes in zip(few, found.labels, found.boxes):
        true = clip.scene.labels(clip.times)
        assert torch.equal(labels[:, 0], torch.from_numpy(true["night"]).long())
        assert [len(some) for some in boxes] == true["cars"].tolist()
        assert torch.equal(labels[:, 1], torch.from_numpy(true["cars"]).clamp(max=4))
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(boxes, clip.boxes))
    assert sum(len(some) for film in found.boxes for some in film) > 5
    labels = clips_at(found, [(0, slice(0, 4))])[1]
    assert labels[0, 1] == found.labels[0, :4, 1].float().mean().round()


def test_boxes_are_told_nine_times_in_ten_and_are_those_of_the_frame(drives):
    found = drives[2]
    windows = [(i, slice(t, t + 1)) for i in range(3) for t in range(5)] * 60
    maps = boxes_at(found, windows, [rng(0, 0, k) for k in range(len(windows))], 8, 16)
    told = maps[:, 0].mean((1, 2)) > 0
    assert float(told.float().mean()) == pytest.approx(0.9, abs=0.03) and (maps[~told] == 0).all()
    assert all(torch.equal(x, box_map(found.boxes[i][part.start], 8, 16))
               for x, yes, (i, part) in zip(maps, told, windows) if yes)


def test_only_driving_has_boxes(films, run):
    with pytest.raises(ValueError, match="no stage 'boxes' for .*: it knows no boxes; give --data driving"):
        recipes.train_boxes(films, "xs", run[0])


def test_films_shorter_than_a_clip_are_refused_with_both_lengths(run, tmp_path):
    short = Latents([normal(6, 4, 8, 8).half()], torch.tensor([[0]]), (("class", ("a",)),), 25.0)
    with pytest.raises(ValueError, match="a clip of 6 frames is too short for 4 frames 2 apart"):
        draw_windows(short, 4, 2, [rng(0, 0, 0)])


def test_a_folder_of_films_without_labels_trains_too(tmp_path):
    films, out = str(made_folder(tmp_path / "films", classes=("",), clips=2)), tmp_path / "run"
    for train in THREE.values():
        train(films, "xs", out, steps=2)
    model = VideoLDM.from_pretrained(str(out))
    assert model.labels().shape == (1, 0) and model.generate(model.labels(), steps=1).shape == (1, 4, 3, 32, 32)


# -- pieces -----------------------------------------------------------------------------------------------------------

def test_steps_and_seed_can_be_set_and_the_rest_is_the_dials():
    assert settings_for("s", "image") == SIZES["s"].stages["image"]
    assert settings_for("s", "image", 7, 3) == replace(SIZES["s"].stages["image"], steps=7, seed=3)


@pytest.fixture
def found():
    """Three films whose numbers tell which film and frame they are: 100 i + t."""
    films = [(100 * i + torch.arange(9 + i)).half()[:, None, None, None].expand(-1, 4, 2, 2) for i in range(3)]
    words = (("a", tuple("xyz")), ("b", tuple("012345678")))
    return Latents(films, torch.tensor([[0, 5], [1, 6], [2, 7]]), words, 25.0)


def test_a_drawn_clip_is_a_window_of_one_film_with_that_films_labels(found):
    z, labels = clips_at(found, draw_windows(found, 4, 2, [rng(0, 0, sample) for sample in range(200)]))
    assert z.shape == (200, 4, 4, 2, 2) and z.dtype == torch.float32
    values = z[:, :, 0, 0, 0]
    film = values[:, 0] // 100
    assert (values.diff(dim=1) == 2).all() and torch.equal(labels[:, 0], film.long())
    assert set(film.tolist()) == {0, 1, 2}
    assert {int(v) for v in values[film == 2][:, 0] - 200} == set(range(11 - 6))        # every start is drawn


def test_what_is_drawn_depends_on_the_sample_and_not_on_the_batch(found):
    both, one = [draw_windows(found, 3, 1, [rng(0, 5, sample) for sample in batch]) for batch in ((3, 4), (4,))]
    assert both[1] == one[0]


def test_labels_are_dropped_one_by_one_and_one_time_in_ten():
    labels, draw = torch.tensor([[1, 2]]).repeat(2000, 1), [rng(0, 0, sample) for sample in range(2000)]
    dropped = drop_labels(labels, (4, 9), draw)
    first, second = dropped[:, 0] == 4, dropped[:, 1] == 9
    assert torch.equal(dropped[~first][:, 0], labels[~first][:, 0])
    assert float(first.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert 0 < (first & second).float().mean() < 0.03                                   # each by its own chance
    assert torch.equal(drop_labels(labels, (4, 9), draw, p=0), labels)
    assert (drop_labels(labels, (4, 9), draw, p=1) == torch.tensor([4, 9])).all()


def test_temporal_layers_learn_one_clip_far_better_than_the_trivial_answer(monkeypatch):
    """For white data of unit variance the best answer without learning is v = 0, with loss 1: z tells nothing of v."""
    monkeypatch.setattr(recipes, "TEMPORAL_DIFFERENCE_WEIGHT", 0.0)                 # 4x4 insertion_points are one square, and white data have no mean
    films = Latents([normal(4, 4, 4, 4, seed=5).half()], torch.tensor([[]]).long(), (), 25.0)
    torch.manual_seed(0)
    theta = UNet(replace(XS.unet))
    model = VideoModel(theta, insert(theta, ff_mult=1, ff_in=False))
    loss, judged = (diffusion_loss(model, films, 4, 1, Settings(steps=40, batch=n)) for n in (4, 40))
    optimizer = torch.optim.AdamW([*theta.parameters(), *temporal_parameters(model.layers)], 8e-3)
    for step in range(40):
        optimizer.zero_grad()
        loss(step, [0, 1, 2, 3])[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        nothing = diffusion_loss(lambda z, tau, labels: torch.zeros_like(z), films, 4, 1, Settings(steps=40, batch=40))
        ours, trivial = (float(each(1000, range(40))[1]["loss"].mean()) for each in (judged, nothing))
    assert trivial == pytest.approx(1, abs=0.15) and ours < 0.6 * trivial, (ours, trivial)


@pytest.mark.parametrize("middle, spread", [recipes.TAU_FRAMES, recipes.TAU_CLIPS])
def test_a_batch_has_all_noise_levels_and_each_is_as_likely_as_the_logit_normal_says(middle, spread):
    draws = torch.stack([draw_tau([rng(0, step, i) for i in range(4)], range(4), 4, middle, spread)
                         for step in range(500)])
    # one of four strata a sample: between the quartiles of 1000 sigmoid(middle + spread n), n = -0.6745, 0, 0.6745
    edges = (1000 * torch.sigmoid(middle + spread * torch.tensor([-torch.inf, -0.6745, 0, 0.6745, torch.inf]))).long()
    assert ((draws >= edges[:-1]) & (draws <= edges[1:])).all()
    logits = ((draws.double() + 0.5) / 1000).logit()
    assert float(logits.mean()) == pytest.approx(middle, abs=0.02 * spread)
    assert float(logits.std()) == pytest.approx(spread, rel=0.03)
    assert draws.min() >= 0 and draws.max() <= 999


def test_an_error_that_all_frames_share_is_steady_and_one_that_details_have_counts_for_as_much_as_they_do():
    shared = normal(2, 1, 4, 8, 8).expand(-1, 5, -1, -1, -1)
    assert torch.equal(temporal_difference_error(shared), torch.zeros(2))
    white = normal(8, 8, 4, 16, 16, seed=1)
    assert TEMPORAL_DIFFERENCE_WEIGHT * float(temporal_difference_error(white).mean()) == pytest.approx(float(white.square().mean()), rel=0.05)
    flicker = normal(2, 5, 1, 1, 1, seed=2).expand(-1, -1, 4, 8, 8)
    assert torch.allclose(temporal_difference_error(flicker), flicker.diff(dim=1).square().flatten(1).mean(1))


def test_clips_pay_for_an_unsteady_error_and_frames_do_not():
    films = Latents([normal(4, 4, 4, 4, seed=5).half()], torch.tensor([[]]).long(), (), 25.0)
    nothing = lambda z, tau, labels: torch.zeros_like(z)                                                # noqa: E731
    for frames in (1, 4):
        total, logs = diffusion_loss(nothing, films, frames, 1, Settings(steps=1, batch=8))(0, range(8))
        assert (float(total) > 1.2 * float(logs["loss"].mean())) == (frames > 1)


def told_regime(films, regime):
    """The loss of a network that always answers 0 and is told both ends."""
    nothing = lambda z, tau, labels, **more: torch.zeros_like(z)                                        # noqa: E731

    told = lambda z, windows, generators: {"regime": torch.tensor([regime] * len(z))}                   # noqa: E731
    return float(diffusion_loss(nothing, films, 5, 1, Settings(steps=1, batch=8), told=told)(0, range(8))[0])


def test_a_regime_weighs_what_its_weight_says():
    films = Latents([normal(5, 4, 4, 4, seed=5).half()], torch.tensor([[]]).long(), (), 25.0)
    ratio = recipes.REGIME_WEIGHTS[1] / recipes.REGIME_WEIGHTS[0]
    assert told_regime(films, 1) / told_regime(films, 0) == pytest.approx(ratio, rel=1e-4)


def test_interpolation_is_asked_for_no_more_than_the_departure_from_a_blend():
    line = torch.linspace(0, 1, 5)[:, None, None, None] * normal(4, 4, 4, seed=5)
    bent = line + 3 * torch.tensor([0.0, 0, 1, 0, 0])[:, None, None, None]
    linear_interpolation, curved = (Latents([film.half()], torch.tensor([[]]).long(), (), 25.0) for film in (line, bent))
    assert told_regime(curved, 0) > 1.3 * told_regime(linear_interpolation, 0)
    again = Latents([(line + 5 * normal(4, 4, 4, seed=6)).half()], torch.tensor([[]]).long(), (), 25.0)
    assert told_regime(again, 0) == pytest.approx(told_regime(linear_interpolation, 0), rel=0.01), "what all frames share is given"


def test_training_that_starts_from_weights_goes_on_from_them(run, films, tmp_path):
    for stage in ("autoencoder", "image"):
        shutil.copytree(run[0] / stage, tmp_path / stage)
    recipes.train_temporal(films, "xs", tmp_path, steps=1, seed=7, start=run[0] / "temporal")
    before, after = (weights.load_tensors(folder / "temporal" / weights.WEIGHTS) for folder in (run[0], tmp_path))
    assert all(torch.allclose(before[k].float(), after[k].float(), atol=2e-3) for k in before)     # one warm-up step
    assert any(not torch.equal(before[k], after[k]) for k in before)
