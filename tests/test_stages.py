"""The stages on small clips: what they leave behind, what they leave alone, what they learn."""
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import copies, made_folder, normal, same
from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder, PatchCritic
from vldm_mini.boxes import BoxImageLDM, box_map
from vldm_mini.datasets import driving, video
from vldm_mini.datasets.driving import DrivingClip
from vldm_mini.diffusion import Schedule
from vldm_mini.pipeline import VideoLDM
from vldm_mini.temporal import TemporalLayers, VideoModel, insert
from vldm_mini.training import BatchRandom, Record, stages
from vldm_mini.training.data import Latents, cached_latents, to_float
from vldm_mini.training.loop import STATE
from vldm_mini.training.losses import ContextOptions, LossOptions, diffusion_loss
from vldm_mini.training.sizes import SIZES
from vldm_mini.training.stages import Request, boxes, common, context, image, temporal, train_stage
from vldm_mini.training.stages import decoder as decoder_stage
from vldm_mini.unet import UNet

XS, STEPS = SIZES["xs"], 8
FIRST_STAGES = "autoencoder", "image", "temporal"
CONTEXT_STAGES = "decoder", "prediction", "interpolation"


def request(data, out, steps=STEPS, **more):
    return Request(data=str(data), size="xs", out=out, steps=steps, progress=False, **more)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return str(made_folder(tmp_path_factory.mktemp("videos")))


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """The first stages at size xs -> (folder, records, the theta that phi was trained on)."""
    out, seen = tmp_path_factory.mktemp("run"), []
    asked = request(videos, out)
    records = {stage: train_stage(stage, asked) for stage in ("autoencoder", "image")}

    def watched(backbone, **options):
        seen.append(backbone)
        return insert(backbone, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporal, "insert", watched)
        records["temporal"] = train_stage("temporal", asked)
    return out, records, seen[-1]


# -- end to end -----------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", FIRST_STAGES)
def test_each_stage_leaves_weights_config_card_and_record(run, stage):
    out, records, _ = run
    names = {path.name for path in (out / stage).iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "record.json", STATE} <= names
    assert not [name for name in names if name.endswith(".part") or name == ".lock"]
    card = (out / stage / "README.md").read_text()
    assert f"`python -m vldm_mini train {stage} --data" in card
    assert "Licence" in card and "Took" in card
    assert Record.load(out / stage) == records[stage]
    for row in records[stage].rows:
        assert torch.tensor(list(row["losses"].values())).isfinite().all()
    assert (out / stage / "record.json").stat().st_size < 1e6


def test_a_folder_of_a_run_generates_videos_of_the_labels_that_were_requested(run):
    model = VideoLDM.from_pretrained(str(run[0]))
    names = [(name, tuple(classes)) for name, classes in model.config.label_names]
    assert names == [("class", ("left", "right"))]
    # 25 frames a second, of which every second one
    assert (model.config.pixels, model.config.frames, model.config.fps) == (32, 4, 12.5)
    generated = model.generate(model.labels(**{"class": "right"}), steps=2)
    assert generated.shape == (1, 4, 3, 32, 32)
    assert generated.abs().max() <= 1 and generated.isfinite().all()


def test_a_stage_that_is_done_is_not_trained_again(run, videos):
    out, records, _ = run
    before = (out / "image" / weights.WEIGHTS).read_bytes()
    assert train_stage("image", request(videos, out)).rows == records["image"].rows
    assert (out / "image" / weights.WEIGHTS).read_bytes() == before


# -- stage by stage -------------------------------------------------------------------------------

@torch.no_grad()
def test_latents_have_mean_0_and_variance_1_on_the_training_frames(run, videos):
    model = Autoencoder.from_pretrained(run[0] / "autoencoder")
    frames = torch.cat([clip.frames for clip in video.split(video.load(videos, size=32))[0]])
    z = model.encode(to_float(frames))
    assert float(z.mean()) == pytest.approx(0, abs=0.05)
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    raw = model.posterior(to_float(frames)).mean
    assert abs(float(raw.std()) - 1) > 0.1, "so the scale had something to do"


def test_the_critic_of_the_autoencoder_steps_in_the_second_half_and_moves(run):
    out, records, _ = run
    torch.manual_seed(0)
    Autoencoder(XS.autoencoder)
    fresh, end = copies(PatchCritic()), weights.load_state(out / "autoencoder" / STATE)
    assert not [name for name, x in end["modules"][1].items() if torch.equal(x, fresh[name])]
    assert {int(one["step"]) for one in end["optimizers"][-1]} == {STEPS // 2}
    rows = records["autoencoder"].rows
    assert [row["step"] for row in rows if "critic" in row["losses"]] == [5, 6, 7, 8]


def test_temporal_training_leaves_every_spatial_weight_exactly_as_it_was(run):
    out, _, theta = run
    assert same(copies(theta), copies(UNet.from_pretrained(out / "image")))
    assert not any(p.requires_grad for p in theta.parameters())
    saved = weights.load_tensors(out / "temporal" / weights.WEIGHTS)
    assert all(name.startswith("mixes.") for name in saved)


@torch.no_grad()
def test_after_training_alpha_1_is_exactly_the_image_model_and_the_learnt_alpha_is_not(run):
    theta = UNet.from_pretrained(run[0] / "image")
    z, tau = normal(2, 4, 4, 8, 8), torch.tensor([300, 800])
    frames = theta(z.flatten(0, 1), tau.repeat_interleave(4)).unflatten(0, (2, 4))
    model = VideoModel(theta, TemporalLayers.from_pretrained(run[0] / "temporal", theta))
    assert not torch.equal(model(z, tau), frames)
    model.layers.set_alpha(1)
    assert torch.equal(model(z, tau), frames)


def test_the_record_keeps_alpha_of_every_layer_and_every_alpha_moves(run):
    rows = run[1]["temporal"].rows
    assert len(rows[0]["alpha"]) == 12 and rows[0]["alpha"].keys() == rows[-1]["alpha"].keys()
    assert all(rows[0]["alpha"][name] != rows[-1]["alpha"][name] for name in rows[0]["alpha"])


@pytest.mark.parametrize("stage, columns", [("image", 8), ("temporal", 4)])
def test_strips_come_from_the_same_noise_at_increasing_intervals(run, stage, columns):
    from PIL import Image
    out, records, _ = run
    strips = [out / stage / name for name in records[stage].strips]
    assert (strips[0].name, strips[-1].name) == ("strip_000001.webp", "strip_000008.webp")
    assert len(strips) > 5
    with Image.open(strips[-1]) as picture:
        assert picture.size == (columns * 32, 4 * 32)


@pytest.mark.parametrize("stage", ["image", "temporal"])
def test_held_out_errors_of_every_level_are_recorded(run, stage):
    held = [row["held_out"]["levels"] for row in run[1][stage].rows if "held_out" in row]
    assert len(held) == STEPS and all(len(levels) == 10 for levels in held)
    assert held[0] != held[-1] and all(0 < level < 10 for level in held[-1])


# -- refused --------------------------------------------------------------------------------------

def test_a_stage_out_of_order_says_which_comes_first(videos, run, tmp_path):
    asked = request(videos, tmp_path)
    for stage in ("image", "temporal", "decoder"):
        message = "no autoencoder in .*: python -m vldm_mini train autoencoder"
        with pytest.raises(FileNotFoundError, match=message):
            train_stage(stage, asked)
    shutil.copytree(run[0] / "autoencoder", tmp_path / "autoencoder")
    for stage in ("temporal", "prediction"):
        message = "no image model in .*; first: python -m vldm_mini train image"
        with pytest.raises(FileNotFoundError, match=message):
            train_stage(stage, asked)


@pytest.mark.parametrize("stage", FIRST_STAGES)
def test_an_unknown_size_is_refused_with_those_that_exist(videos, tmp_path, stage):
    with pytest.raises(ValueError, match="unknown size 'huge'; choose one of xs, s, m, paper"):
        train_stage(stage, replace(request(videos, tmp_path), size="huge"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unknown_stage_is_refused_with_those_that_exist(videos, tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'sound'; choose one of autoencoder, image"):
        train_stage("sound", request(videos, tmp_path))


def test_classifiers_classify_actions_and_driving_and_nothing_else(videos, tmp_path):
    with pytest.raises(ValueError, match="classifiers of .*`actions`, and of `driving`, not of"):
        train_stage("classifiers", request(videos, tmp_path))


def test_only_driving_can_be_interpolated_and_has_boxes(videos, run):
    for stage, message in (("interpolation", "frames at 7.5 and 30 a second"),
                           ("boxes", "only `driving` knows where its cars are")):
        with pytest.raises(ValueError, match=message):
            train_stage(stage, request(videos, run[0]))


def test_an_upsampler_learns_nothing_from_small_frames(tmp_path):
    with pytest.raises(ValueError, match="the frames of `actions` have 64 x 64 pixels"):
        train_stage("upsampler", request("actions", tmp_path))


# -- driving --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def driving_run(tmp_path_factory):
    """All stages of Fig. 5 on `driving` at size xs, on three clips of five frames.

    -> (folder, clips, latents, {stage: what it passed to its loss}).
    """
    out = tmp_path_factory.mktemp("driving")
    few = [DrivingClip(seed, 5, 32) for seed in (1, 3, 4)]
    asked, passed = request("driving", out, 2), {}

    def noting(module, name):
        original = getattr(module, name)

        def call(*args, **kwargs):
            passed.setdefault(stage, {})[name] = args, kwargs
            return original(*args, **kwargs)
        return call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "clips",
                      lambda split, n, height: few if split == "train" else few[:1])
        patch.setattr(driving, "seeds", lambda split, n, first=0: [1, 3])
        for module in (image, temporal, context, boxes):
            patch.setattr(module, "diffusion_loss", noting(module, "diffusion_loss"))
        patch.setattr(boxes, "box_condition", noting(boxes, "box_condition"))
        for name in ("prediction_context", "interpolation_context"):
            patch.setattr(context, name, noting(context, name))
        for stage in (*FIRST_STAGES, "boxes", *CONTEXT_STAGES):
            train_stage(stage, asked)
        return out, few, cached_latents("driving", out, few), passed


FRAMES = LossOptions(tau=(0.5, 1.0), stratified=True)
CLIPS = LossOptions(tau=(-0.8, 1.5), stratified=True, temporal_difference=8.0)
GIVEN = LossOptions(tau=(0.4, 1.4), stratified=True, temporal_difference=8.0)
BETWEEN = replace(GIVEN, anchored=True, regime_weights=(0.4, 1.6))
PLAIN_CONTEXT = ContextOptions(odds=(0.2, 0.25, 0.55), noisy_share=0.25, max_tau=250,
                               self_generated=0.0, self_generated_tau=500)


@pytest.mark.parametrize("stage, window, options", [
    ("image", (1, 1), FRAMES), ("boxes", (1, 1), FRAMES), ("temporal", (4, 1), CLIPS),
    ("prediction", (4, 1), GIVEN), ("interpolation", (5, 1), BETWEEN)])
def test_every_stage_passes_its_own_options_to_the_loss(driving_run, stage, window, options):
    (model, latents, frames, stride, schedule, prediction, found, *rest), more = \
        driving_run[3][stage]["diffusion_loss"]
    assert (frames, stride) == window and prediction == "v" and not more
    assert isinstance(schedule, Schedule) and torch.equal(schedule.alpha_tau,
                                                          Schedule.linear().alpha_tau)
    assert found == options and found.label_drop == 0.1
    assert bool(rest) == (stage in ("prediction", "interpolation", "boxes"))


@pytest.mark.parametrize("stage, options", [
    ("prediction", replace(PLAIN_CONTEXT, self_generated=0.5)), ("interpolation", PLAIN_CONTEXT)])
def test_every_stage_passes_its_own_options_to_its_context(driving_run, stage, options):
    args, more = driving_run[3][stage][f"{stage}_context"]
    assert args[-1] == options and not more


def test_box_maps_are_dropped_as_often_as_labels(driving_run):
    (maps, drop), _ = driving_run[3]["boxes"]["box_condition"]
    assert drop == 0.1 and maps.shape == (15, 4, 8, 16)


def test_driving_trains_and_its_videos_are_twice_as_wide_as_high(driving_run):
    model = VideoLDM.from_pretrained(str(driving_run[0]))
    assert (model.config.pixels, model.config.width, model.config.fps) == (32, 64, 1.875)
    labels = model.labels(light="night", cars=3)
    assert model.generate(labels, steps=1).shape == (1, 4, 3, 32, 64)
    of_boxes = BoxImageLDM.from_pretrained(str(driving_run[0]))
    frame = of_boxes.generate(of_boxes.labels(light="day"), boxes=[[(0.1, 0.4, 0.3, 0.7)]], steps=1)
    assert frame.shape == (1, 1, 3, 32, 64)


def test_driving_trains_the_stages_of_long_videos_and_they_generate_one(driving_run):
    out = driving_run[0]
    model = VideoLDM.from_pretrained(str(out))
    assert set(model.context_models) == {"prediction", "interpolation"}
    assert model.decoder.net is not None
    long = model.smooth_video(model.labels(light="day"), steps=1)
    assert long.shape == (1, 16 * 3 + 1, 3, 32, 64)
    assert same(copies(model.theta), copies(UNet.from_pretrained(out / "image")))
    for stage in CONTEXT_STAGES:
        card = (out / stage / "README.md").read_text()
        assert f"`python -m vldm_mini train {stage} --data driving" in card


def test_clips_to_interpolate_alternate_between_both_rates_which_are_the_regimes(driving_run):
    """Regime 0 of the pipeline is T to 4T, frames at 7.5 a second; regime 1 the rate of the end."""
    _, latents, *_ = driving_run[3]["interpolation"]["diffusion_loss"][0]
    assert len(latents.clips) == 4 and all(len(clip) == 5 for clip in latents.clips)
    clips = [DrivingClip(seed, 5, 32, fps, start=0 if seed == 3 else 3)
             for seed in (1, 3) for fps in (7.5, 30)]
    assert latents.names == [clip.name for clip in clips] and len(set(latents.names)) == 4
    times = [3, 3 + 1 / 7.5, 3 + 2 / 7.5, 3 + 3 / 7.5, 3 + 4 / 7.5]
    assert clips[0].times.tolist() == pytest.approx(times)


def test_what_is_kept_of_driving_is_what_the_scenes_say(driving_run):
    _, few, latents, _ = driving_run
    assert latents.labels.shape == (3, 5, 2) and latents.label_names == driving.LABEL_NAMES
    assert latents.fps == 1.875
    for clip, labels, of_frames in zip(few, latents.labels, latents.boxes):
        true = clip.scene.labels(clip.times)
        assert torch.equal(labels[:, 0], torch.from_numpy(true["night"]).long())
        assert [len(some) for some in of_frames] == true["cars"].tolist()
        assert torch.equal(labels[:, 1], torch.from_numpy(true["cars"]).clamp(max=4))
        assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(of_frames, clip.boxes))
    assert sum(len(some) for clip in latents.boxes for some in clip) > 5
    flat = [some for clip in latents.boxes for some in clip]
    maps = torch.stack([box_map(some, 8, 16).half() for some in flat])
    assert torch.equal(latents.box_maps(), maps)


# -- the decoder ----------------------------------------------------------------------------------

def test_the_critic_of_the_temporal_decoder_steps_and_the_encoder_does_not(run, videos, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0] / "autoencoder", out / "autoencoder")
    before, seen = copies(Autoencoder.from_pretrained(out / "autoencoder")), []
    plain = decoder_stage.VideoDecoder

    def watched(model, layers):
        seen.append(model)
        return plain(model, layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_stage, "VideoDecoder", watched)
        record = train_stage("decoder", request(videos, out))
    assert same(copies(seen[0]), before), "encoder and decoder are exactly the plain ones"
    torch.manual_seed(0)
    insert(Autoencoder.from_pretrained(out / "autoencoder").decoder, attention=None, space=3)
    fresh, end = copies(PatchCritic(dims=3)), weights.load_state(out / "decoder" / STATE)
    assert not [name for name, x in end["modules"][1].items() if torch.equal(x, fresh[name])]
    ends = [x for name, x in end["modules"][0].items() if name.endswith("conv2.weight")]
    assert ends and all(x.abs().max() > 0 for x in ends)
    assert sorted(record.rows[0]["losses"]) == ["change", "critic", "decoder", "error"]


# -- folders of one's own -------------------------------------------------------------------------

def test_a_folder_of_videos_without_labels_trains_too(tmp_path):
    videos = made_folder(tmp_path / "videos", classes=("",), clips=2)
    out = tmp_path / "run"
    for stage in FIRST_STAGES:
        train_stage(stage, request(videos, out, 2))
    model = VideoLDM.from_pretrained(str(out))
    assert model.labels().shape == (1, 0)
    assert model.generate(model.labels(), steps=1).shape == (1, 4, 3, 32, 32)


def test_what_is_asked_for_replaces_the_dial_and_the_rest_is_the_dials(tmp_path):
    of_dial = SIZES["s"].stages["image"]
    assert Request(size="s", out=tmp_path).settings("image") == of_dial
    asked = Request(size="s", out=tmp_path, steps=7, seed=3, lr=0.5, batch=2, accumulate=2,
                    precision="bf16", channels_last=True, compile=True)
    assert asked.settings("image") == replace(
        of_dial, steps=7, seed=3, lr=0.5, batch=2, accumulate=2, precision="bf16",
        channels_last=True, compile=True)
    assert replace(asked, frames=3).dial == replace(SIZES["s"], frames=3)


def test_training_that_starts_from_weights_continues_from_them(run, videos, tmp_path):
    for stage in ("autoencoder", "image"):
        shutil.copytree(run[0] / stage, tmp_path / stage)
    train_stage("temporal", request(videos, tmp_path, 1, seed=7, start=run[0] / "temporal"))
    before, after = (weights.load_tensors(folder / "temporal" / weights.WEIGHTS)
                     for folder in (run[0], tmp_path))
    for name in before:                                                # one warm-up step
        assert torch.allclose(before[name].float(), after[name].float(), atol=2e-3)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_without_pillow_a_stage_trains_and_leaves_its_strips_out(
        run, videos, tmp_path, monkeypatch):
    shutil.copytree(run[0] / "autoencoder", tmp_path / "autoencoder")
    monkeypatch.setattr(common, "find_spec", lambda name: None)
    # encoded before, by a machine that has Pillow
    shutil.copytree(run[0] / "latents", tmp_path / "latents")
    monkeypatch.setattr(stages, "find_spec", lambda name: None)
    record = train_stage("image", request(videos, tmp_path, 2))
    assert stages.sample_video(request(videos, run[0])) is None
    assert record.strips == [] and (tmp_path / "image" / weights.WEIGHTS).is_file()


# -- learning -------------------------------------------------------------------------------------

class Zero(torch.nn.Module):
    """A network that always predicts 0."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, tau, **conditions):
        return torch.zeros_like(z)


def test_temporal_layers_learn_one_clip_far_better_than_the_trivial_prediction():
    """For white data of unit variance v = 0 is best without learning, with a loss of 1."""
    latents = Latents([normal(4, 4, 4, 4, seed=5).half()], torch.zeros(1, 0).long(), (), 25.0)
    torch.manual_seed(0)
    theta = UNet(replace(XS.unet))
    model = VideoModel(theta, insert(theta, ff_mult=1, ff_in=False))
    options = LossOptions(tau=(-0.8, 1.5), stratified=True)
    schedule = Schedule.linear()
    loss = diffusion_loss(model, latents, 4, 1, schedule, options=options)
    trained = [*theta.parameters(), *model.layers.parameters()]
    optimizer = torch.optim.AdamW({id(p): p for p in trained}.values(), 8e-3)
    for step in range(40):
        optimizer.zero_grad()
        loss(BatchRandom(0, step, 4, torch.device("cpu")))[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    trivial = diffusion_loss(Zero(), latents, 4, 1, schedule, options=options)
    with torch.no_grad():
        ours, baseline = (float(each(BatchRandom(0, 1000, 40, torch.device("cpu")))[0])
                          for each in (loss, trivial))
    assert baseline == pytest.approx(1, abs=0.15) and ours < 0.6 * baseline, (ours, baseline)
