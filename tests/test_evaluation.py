"""ActionClassifiers and measures: exact answers on made films, and the trivial baselines that each must tell apart."""
import functools
import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vldm_mini.datasets import video
from vldm_mini.evaluation import action_classifiers, measures
from vldm_mini.evaluation.action_classifiers import ActionClassifiers, ActionClassifiersConfig

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "checkpoints" / "actions" / "classifiers"
SMALL = ActionClassifiersConfig(size=8, channels=(8, 8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def ramp(t=8, acceleration=0.0, speed=0.1):
    """A film whose every pixel is speed * t + acceleration * t^2 / 2: (1 t 3 16 16)."""
    time = torch.arange(t, dtype=torch.float64)
    return (speed * time + acceleration * time ** 2 / 2).view(1, t, 1, 1, 1).expand(1, t, 3, 16, 16)


def made_clip(action, person, t=60, seed=0, mirror=False):
    """A clip that needs no file: a bright square that circles, its speed the action, over a shade, the person."""
    frames = torch.full((t, 64, 64, 3), 20 * person, dtype=torch.uint8)
    for i in range(t):
        angle = (0.08 + 0.04 * action) * i + seed
        y, x = int(32 + 20 * math.sin(angle)), int(32 + 20 * math.cos(angle))
        frames[i, y - 6:y + 6, x - 6:x + 6] = 255
    frames = frames.flip(2) if mirror else frames
    return video.VideoClip(f"{action}-{person}-{mirror}", frames, {"action": action, "person": person},
                           group=f"{action}-{person}", mirror=mirror)


# -- measures ----------------------------------------------------------------------------------------------------------


def test_motion_is_the_change_per_frame_and_jerk_ignores_even_motion_and_even_acceleration():
    assert measures.motion(ramp(speed=0.1)).item() == pytest.approx(0.1, rel=1e-12)
    assert measures.jerk(ramp(speed=0.1)).item() == pytest.approx(0, abs=1e-12)
    assert measures.jerk(ramp(acceleration=0.02)).item() == pytest.approx(0, abs=1e-12)


def test_jerk_of_a_cubic_is_its_third_difference():
    time = torch.arange(6, dtype=torch.float64)
    film = (0.5 * time ** 3).view(1, 6, 1, 1, 1).expand(1, 6, 1, 8, 8)
    # third difference of t^3 is 3! = 6
    assert measures.jerk(film).item() == pytest.approx(3.0, rel=1e-9)


def test_independent_frames_move_by_root_2_and_jerk_by_root_20_spreads():
    film = noise(1, 4000, 1, 1, 1).expand(1, 4000, 1, 4, 4)
    assert measures.motion(film).item() == pytest.approx(math.sqrt(2), rel=0.05)
    assert measures.jerk(film).item() == pytest.approx(math.sqrt(20), rel=0.05)


def test_flicker_of_single_pixels_is_no_motion_but_counts_unblurred():
    film = noise(2, 8, 3, 64, 64)
    assert (measures.motion(film) < 0.1 * measures.motion(film, blur=0)).all()


def test_shuffled_frames_of_a_smooth_film_jerk_more():
    film = video.to_float(made_clip(1, 3).frames[:24:3])[None]
    shuffled = film[:, action_classifiers.shuffled(8, seeded())]
    assert measures.jerk(shuffled) > 1.5 * measures.jerk(film)


def test_a_frozen_film_has_no_motion_and_no_jerk():
    film = noise(1, 1, 3, 16, 16).expand(1, 8, 3, 16, 16)
    assert measures.motion(film).item() == 0 and measures.jerk(film).item() == 0


def test_low_pass_is_a_gaussian_that_repeats_the_edges():
    point = torch.zeros(1, 1, 1, 31, 31)
    point[..., 15, 15] = 1
    spread = measures.low_pass(point, 2.0)[0, 0, 0]
    # two pixels away in one direction: exp(-2^2 / (2 2^2)) of the middle
    assert (spread[15, 17] / spread[15, 15]).item() == pytest.approx(math.exp(-0.5), rel=1e-9)
    assert spread.sum().item() == pytest.approx(1, rel=1e-9)
    assert measures.blur_matrix(5, 3.0).sum(1).tolist() == pytest.approx([1] * 5)


def test_low_pass_keeps_a_flat_film_and_is_float64():
    film = torch.full((1, 2, 3, 16, 16), 0.3)
    assert measures.low_pass(film, 2.0).dtype == torch.float64
    assert torch.allclose(measures.low_pass(film, 2.0), film.double(), atol=1e-12)


def test_measures_say_how_many_frames_they_need():
    with pytest.raises(ValueError, match="more than 3 frames"):
        measures.jerk(noise(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="n t c h w"):
        measures.motion(noise(8, 3, 16, 16))


def test_psnr_by_hand():
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    y[0], y[1] = 0.2, 0.02
    # 10 log10(4 / 0.04) = 20, and a tenth of the error is 20 dB more
    assert measures.psnr(x, y).tolist() == pytest.approx([20, 40], abs=1e-5)
    assert measures.psnr(x, y, peak=1.0).tolist() == pytest.approx([20 - 6.0206, 40 - 6.0206], abs=1e-4)
    assert measures.psnr(x, x).tolist() == [math.inf, math.inf]
    with pytest.raises(ValueError, match="like with like"):
        measures.psnr(x, y[:1])


def test_nearest_finds_the_clip_and_the_shift_that_a_film_was_cut_from():
    bank = [noise(20, 2, 4, 4, seed=k) for k in range(3)]
    films = torch.stack([bank[1][5:5 + 10:3], bank[2][0:10:3]])
    near = measures.nearest(films, bank, stride=3)
    assert near.clip.tolist() == [1, 2] and near.start.tolist() == [5, 0]
    assert near.distance.max() < 1e-6
    # at another stride the same frames are no window
    assert measures.nearest(films, bank, stride=2).distance.min() > 0.1


def test_nearest_is_the_plain_distance_over_every_window():
    bank, films = [noise(9, 3, 2, seed=1), noise(12, 3, 2, seed=2)], noise(4, 3, 3, 2, seed=3)
    every = torch.stack([(films - clip[s:s + 5:2]).double().pow(2).mean((1, 2, 3)).sqrt()
                         for clip in bank for s in range(len(clip) - 4)])
    assert torch.allclose(measures.nearest(films, bank, stride=2).distance, every.min(0).values, atol=1e-6)


def test_nearest_counts_mirrors_only_if_the_bank_holds_them():
    clip = noise(10, 1, 4, 4)
    mirrored = clip[None, 2:6].flip(-1)
    assert measures.nearest(mirrored, [clip]).distance.item() > 0.5
    assert measures.nearest(mirrored, [clip, clip.flip(-1)]).distance.item() < 1e-6


def test_nearest_passes_over_clips_that_are_too_short_and_says_so_if_all_are():
    films = noise(1, 4, 2)
    assert measures.nearest(films, [noise(3, 2), noise(4, 2)]).clip.item() == 1
    with pytest.raises(ValueError, match="no clip of the bank has 4 frames"):
        measures.nearest(films, [noise(3, 2)])


def test_bootstrap_holds_the_mean_and_narrows_with_n():
    few, many = noise(25), noise(2500)
    low, high = measures.bootstrap(many, torch.mean, seeded())
    assert low < many.mean() < high and 0.06 < high - low < 0.1                  # 2 * 1.96 / sqrt(2500) = 0.078
    low_few, high_few = measures.bootstrap(few, torch.mean, seeded())
    assert high_few - low_few > 5 * (high - low)
    assert measures.bootstrap(few, torch.mean, seeded()) == (low_few, high_few)


def test_no_measure_changes_what_it_is_given():
    films = noise(2, 8, 3, 16, 16)
    before = films.clone()
    measures.motion(films), measures.jerk(films, blur=0), measures.psnr(films, films), measures.low_pass(films, 0)
    measures.nearest(films, [films[0]])
    action_classifiers.baselines(films, seeded())
    ActionClassifiers(SMALL).classify(films)
    assert torch.equal(films, before)


# -- what the classifiers learn from ----------------------------------------------------------------------------------------


def test_the_last_third_is_held_out_and_one_window_at_least():
    assert action_classifiers.classifier_split(146) == 146 - 49
    assert action_classifiers.classifier_split(51) == 51 - 22
    clips = [made_clip(0, 0, t=51), made_clip(1, 1, t=90)]
    films, actions, persons = action_classifiers.held_windows(clips, step=1)
    assert films.shape == (1 + 9, 8, 3, 64, 64)
    assert actions.tolist() == [0] + [1] * 9 and persons.tolist() == [0] + [1] * 9
    assert torch.equal(films[1], video.to_float(clips[1].frames[60:60 + 22:3]))


def test_training_never_sees_a_held_out_frame():
    clip = made_clip(0, 0)
    clip.frames[action_classifiers.classifier_split(60):] = 255
    parts = action_classifiers._training_parts([clip], SMALL)
    assert len(parts[0][0]) == action_classifiers.classifier_split(60)
    assert parts[0][0].mean() < 0


def test_windows_are_those_of_the_video_module():
    frames = torch.arange(30)
    assert torch.equal(action_classifiers.windows(frames, 8, 3)[4], video.window(frames, 4, 8, 3))
    assert len(action_classifiers.windows(frames, 8, 3)) == 30 - video.span(8, 3) + 1


def test_a_shuffle_is_neither_the_order_nor_its_reverse():
    generator = seeded()
    for _ in range(50):
        assert action_classifiers.shuffled(3, generator).tolist() not in ([0, 1, 2], [2, 1, 0])


def test_what_is_out_of_order_never_is_a_window_in_order():
    clip = torch.arange(30.).view(30, 1, 1, 1)
    film, generator = clip[:24:3], seeded()
    for _ in range(200):
        steps = action_classifiers.disorder(clip, film, generator).flatten().diff()
        assert not (steps == 3).all() and not (steps == -3).all()


def test_opponents_by_hand():
    films = torch.arange(8.).view(1, 8, 1, 1, 1)
    made = {name: film.flatten().tolist() for name, film in action_classifiers.baselines(films, seeded()).items()}
    assert made["freeze"] == [0] * 8 and made["backwards"] == list(range(7, -1, -1))
    assert sorted(made["shuffled"]) == list(range(8)) != made["shuffled"]
    assert made["stutter"] == sorted(made["stutter"]) and len(set(made["stutter"])) < 8


# -- the classifiers --------------------------------------------------------------------------------------------------------


def test_a_frozen_film_tells_the_judges_of_motion_nothing():
    classifiers, films = ActionClassifiers(SMALL), noise(5, 1, 3, 16, 16).expand(5, 8, 3, 16, 16)
    action, person, order = classifiers(films)
    assert (action == action[0]).all() and (order == order[0]).all()
    assert not torch.allclose(person[0], person[1])


def test_the_judge_of_persons_does_not_look_at_the_order():
    classifiers, films = ActionClassifiers(SMALL), noise(2, 8, 3, 16, 16)
    other = films[:, action_classifiers.shuffled(8, seeded())]
    assert torch.allclose(classifiers(films)[1], classifiers(other)[1], atol=1e-5)
    assert not torch.allclose(classifiers(films)[2], classifiers(other)[2], atol=1e-5)


def test_clips_are_judged_one_by_one_at_any_size_and_length():
    classifiers, films = ActionClassifiers(SMALL).eval(), noise(3, 11, 3, 24, 24)
    together = classifiers(films)
    for got, alone in zip(together, classifiers(films[1:2])):
        assert torch.allclose(got[1:2], alone, atol=1e-5)


def test_wrong_shapes_end_in_one_sentence():
    for films in (noise(8, 3, 16, 16), noise(1, 8, 1, 16, 16), noise(1, 1, 3, 16, 16)):
        with pytest.raises(ValueError, match="the classifiers want films"):
            ActionClassifiers(SMALL)(films)


def test_the_same_seed_gives_the_same_judges_and_leaves_the_global_seed_alone():
    clips = [made_clip(a, p) for a in range(2) for p in range(2)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (action_classifiers.fit_classifiers(clips, seed=3, steps=2, batch=2, config=SMALL) for _ in range(2))
    other = action_classifiers.fit_classifiers(clips, seed=4, steps=2, batch=2, config=SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in first.state_dict().items():
        assert torch.equal(p, second.state_dict()[name])
    assert not torch.equal(first.action[0].weight, other.action[0].weight)


def test_training_the_judges_leaves_weights_a_card_and_a_record(tmp_path):
    clips = [made_clip(a, p) for a in range(4) for p in range(2)]
    table = action_classifiers.train_classifiers(tmp_path, clips=clips, steps=2)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "record.json"}
    assert json.loads((tmp_path / "record.json").read_text())["table"] == table
    assert f"| {table['real']['n']} |" in (tmp_path / "README.md").read_text()
    assert ActionClassifiers.from_pretrained(tmp_path).config == ActionClassifiersConfig()


def test_the_report_counts_what_was_asked_for():
    verdict = action_classifiers.ActionPrediction(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 5, 5]), torch.tensor([.9, .9, .1, .5]))
    classifiers = SimpleNamespace(classify=lambda films: verdict)
    report = action_classifiers.classifier_report(classifiers, torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 5, 5, 5]))
    by_action = report.pop("by_action")
    assert report == {"action": 3, "person": 3, "both": 2, "in_order": 2, "n": 4}
    assert by_action == [[1, 2], [1, 1], [1, 1]]


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers are not shipped here")
def test_shipped_judges_are_small_and_their_card_prints_what_their_record_says():
    classifiers = ActionClassifiers.from_pretrained(SHIPPED)
    assert (SHIPPED / "model.safetensors").stat().st_size < 1e6
    table = json.loads((SHIPPED / "record.json").read_text())["table"]
    card = (SHIPPED / "README.md").read_text()
    for name, row in table.items():
        assert f"| {name} | {row['action']} | {row['person']} | {row['in_order']} | {row['n']} |" in card
    assert classifiers.config == ActionClassifiersConfig()


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers are not shipped here")
def test_shipped_judges_name_real_films_and_are_not_fooled_by_their_opponents(real_data):
    classifiers = ActionClassifiers.from_pretrained(SHIPPED)
    clips = [clip for clip in video.actions(real_data) if not clip.mirror]
    table = action_classifiers.classifier_table(classifiers, clips, step=4)
    share = lambda row, what: table[row][what] / table[row]["n"]                                         # noqa: E731
    assert share("real", "action") >= 0.9 and share("real", "person") >= 0.95 and share("real", "in_order") >= 0.85
    assert share("freeze", "action") < 0.5 and share("freeze", "in_order") == 0
    assert share("shuffled", "in_order") < 0.15 and share("stutter", "in_order") < 0.25


# -- the benchmarks' plumbing, with a generator that is no generator ---------------------------------------------------


class FakeAutoencoder(torch.nn.Module):
    """f = 4 by averaging; decoding repeats. Linear, so that every figure can be foretold."""
    factor = 4

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 4)

    def decode(self, z):
        return z.repeat_interleave(4, -1).repeat_interleave(4, -2)


class FakeModel:
    """Answers a request with a window of a made clip of that action and person; at alpha = 1 with shuffled frames."""
    config = SimpleNamespace(steps=3, label_guidance=1.5, temporal_guidance=2.0, eta=1.0)

    def __init__(self):
        self.autoencoder = FakeAutoencoder()

    def noise(self, n, frames, seed):
        return noise(n, frames, 3, 16, 16, seed=seed)

    def labels(self, action, person):
        return torch.tensor([[action, person]])

    def latents(self, labels, frames, alpha, seed, steps, label_guidance, noise, temporal_guidance):
        films = []
        for i, (action, person) in enumerate(labels.tolist()):
            film = video.to_float(made_clip(action, person, seed=i).frames[:24:3])
            order = action_classifiers.shuffled(frames, seeded(i)) if alpha == 1 else slice(None)
            films.append(self.autoencoder.encode(film[order]))
        return torch.stack(films)

    def decode(self, z):
        return self.autoencoder.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The benchmarks' modules, a fake model, its samples, and clips to compare with."""
    load = lambda name: importlib.import_module(f"tests.benchmarks.{name}")                              # noqa: E731
    samples = importlib.import_module("vldm_mini.evaluation.action_samples")
    monkeypatch.setattr(samples, "RUNS", tmp_path / "runs")
    model = FakeModel()
    made = {"video": samples.make(model, 28), "held_out": samples.make(model, 4, held_out=True),
            "image": samples.make(model, 28, alpha=1), "unguided": samples.make(model, 28, motion=1)}
    clips = [made_clip(a, p, mirror=mirror) for a in range(4) for p in range(9) for mirror in (False, True)]
    for clip in clips:
        object.__setattr__(clip, "name", f"actions/{clip.name}")
    monkeypatch.setattr(video, "split", lambda clips: split(clips))
    return SimpleNamespace(load=load, samples=samples, model=model, made=made, clips=clips, root=tmp_path)


def split(clips):
    asked = lambda c: (c.labels["person"], c.labels["action"])                                           # noqa: E731
    held = [c for c in clips if c.labels["person"] == 8 or asked(c) in video.HELD_OUT_PAIRS]
    return [c for c in clips if c not in held], held


def test_requests_are_dealt_evenly_over_combinations_and_seeds():
    samples = importlib.import_module("vldm_mini.evaluation.action_samples")
    dealt = samples.requests(200, held_out=False)
    asked = [pair for _, pairs in dealt for pair in pairs]
    assert [len(pairs) for _, pairs in dealt] == [67, 67, 66]
    counts = {pair: asked.count(pair) for pair in set(asked)}
    assert len(counts) == 28 and set(counts.values()) == {7, 8}
    held = {pair for _, pairs in samples.requests(40, held_out=True) for pair in pairs}
    assert held == {(a, p) for p, a in video.HELD_OUT_PAIRS} and not held & counts.keys()


def test_samples_are_kept_by_weights_and_settings(bench, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    first = bench.samples.samples(bench.model, folder, 4)
    again = bench.samples.samples(None, folder, 4)                               # no model is asked
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values()))
    names = {bench.samples.key(folder, n=4), bench.samples.key(folder, n=5)}
    (folder / "model.safetensors").write_bytes(b"two")
    assert len(names | {bench.samples.key(folder, n=4)}) == 3


def test_control_reports_what_the_judges_say(bench):
    def classify(films):                                                            # who: the shade; order: smoothness
        person = ((films[:, 0, 0, 0, 0] + 1) * 127.5 / 20).round().long()
        jumps = (films[:, 1:] - films[:, :-1]).abs().mean((1, 2, 3, 4))
        return action_classifiers.ActionPrediction(torch.zeros(len(films)).long(), person, (jumps > 0).float())
    classifiers = SimpleNamespace(classify=classify, config=ActionClassifiersConfig())
    out = bench.load("control_actions").run(bench.model, bench.made, classifiers, bench.clips)
    assert out["person_accuracy"] == 1 and out["real_person_accuracy"] == 1 and out["n"] == 28
    assert out["action_accuracy"] == 0.25 and out["held_out_accuracy"] == 0.25   # it always says: the first action
    assert out["order_accuracy"] == 1 and out["beside"]["real, freeze"]["in_order"] == 0
    assert sum(row["n"] for row in out["generated"]["video"]["by_seed"].values()) == 28
    assert json.dumps(out)


def test_no_clip_outvotes_another_by_its_length():
    motion = importlib.import_module("tests.benchmarks.motion_actions")
    films, actions = motion.real_windows([made_clip(0, 0, t=22), made_clip(1, 1, t=90)], count=5)
    assert films.shape == (10, 8, 3, 64, 64) and actions.tolist() == [0] * 5 + [1] * 5
    assert torch.equal(films[9], video.to_float(made_clip(1, 1, t=90).frames[68::3]))


def test_motion_is_one_for_the_same_clips_and_more_for_shuffled_frames(bench, monkeypatch):
    module = bench.load("motion_actions")
    few = functools.partial(module.real_windows, count=3)
    monkeypatch.setattr(module, "real_windows", few)
    out = module.run(bench.model, bench.made, bench.clips)
    for action in video.ACTIONS:
        assert out["video_ratio"][action] == pytest.approx(1, abs=0.15)
        assert out["beside"]["real, freeze"]["motion"][action] == 0
        assert out["image_jerk_ratio"][action] > 1.3 and out["image_told_apart"][action]
    assert out["n"] == {"video": 28, "held_out": 4, "image": 28, "unguided": 28, "real": out["n"]["real"]}
    assert json.dumps(out)


def test_memorisation_finds_copies_and_draws_them(bench):
    few = [clip for clip in bench.clips if clip.labels["person"] in (0, 3, 8)]
    out = bench.load("memorisation_actions").run(bench.model, bench.made, few)
    assert out["copy_ratio"] < 0.05
    distance = out["median_distance"]
    assert out["nn_ratio"] < distance["generated_image"] / distance["real_held_out"]
    assert (bench.root / "runs" / "memorisation-actions.png").is_file()
    assert json.dumps(out)


def test_autoencoder_is_measured_on_the_person_it_never_saw(bench):
    out = bench.load("autoencoder_actions").run(bench.model.autoencoder, bench.clips)
    x = video.to_float(torch.cat([clip.frames for clip in bench.clips if clip.labels["person"] == 8]))
    y = bench.model.autoencoder.decode(bench.model.autoencoder.encode(x))
    assert out["n"] == len(x) == 480
    # 10 log10(2^2 / MSE)
    assert out["psnr_db"] == pytest.approx(10 * math.log10(4 / (x - y).double().pow(2).mean().item()), abs=0.01)
    assert json.dumps(out)
