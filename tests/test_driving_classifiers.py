"""The classifiers of `driving`: exact answers where they are known, and that the shipped ones are
good."""
import json
from pathlib import Path

import pytest
import torch

from tests.tiny import normal
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_classifier_training as training
from vldm_mini.evaluation import frechet, measures
from vldm_mini.evaluation.driving_classifiers import (
    BoxCounts,
    CarFinder,
    SceneClassifier,
    count_hits,
)
from vldm_mini.training import BatchRandom

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "checkpoints" / "driving" / "classifiers"
CPU = torch.device("cpu")


# -- distances

def test_the_frechet_distance_of_gaussians_is_the_formula():
    """For independent features: sum of (difference of means)^2 + (difference of deviations)^2."""
    x, y = normal(20000, 3), normal(20000, 3, seed=1)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, -2.0])
    expected = float((shift ** 2 + (scale - 1) ** 2).sum())
    assert frechet.frechet_distance(x, y * scale + shift) == pytest.approx(expected, rel=0.03)
    assert frechet.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(normal(3, 3, seed=2).double())[0]
    turned = frechet.frechet_distance(x.double() @ turn, y.double() @ turn)
    assert frechet.frechet_distance(x, y) == pytest.approx(turned, rel=1e-6)


def test_the_frechet_distance_agrees_with_the_square_root_of_the_product():
    x, y = normal(500, 5).double(), (normal(400, 5, seed=1) @ normal(5, 5, seed=2)).double()
    a, b = x.T.cov(), y.T.cov()
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    means = (x.mean(0) - y.mean(0)).square().sum()
    expected = float(means + a.trace() + b.trace() - 2 * roots)
    assert frechet.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_a_report_has_an_interval_around_the_distance_and_a_floor_under_a_worse_set():
    real, found = normal(400, 4), 0.3 + normal(300, 4, seed=1)
    report = frechet.frechet_report(found, real, torch.Generator().manual_seed(0))
    low, high = report["interval"]
    assert low < report["distance"] * 1.2 and report["distance"] < high
    assert report["floor"] < 0.5 * report["distance"] and (report["n"], report["m"]) == (300, 400)


def test_too_few_samples_for_a_covariance_are_refused():
    with pytest.raises(ValueError, match="of 8 features needs more .* on both sides, got 8 and 20"):
        frechet.frechet_distance(normal(8, 8), normal(20, 8))


def test_an_error_that_stays_does_not_flicker_and_one_that_jumps_does():
    source = normal(2, 6, 3, 8, 8)
    assert measures.flicker(source + 0.5, source) == pytest.approx([0, 0], abs=1e-12)
    jumps = torch.tensor([0.0, 1, 0, 1, 0, 1]).view(1, 6, 1, 1, 1)
    assert measures.flicker(source + 0.5 * jumps, source) == pytest.approx([0.25, 0.25])
    with pytest.raises(ValueError, match="one shape"):
        measures.flicker(source, source[:1])


def test_rank_correlation_knows_order_alone_and_shares_ties():
    assert measures.spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert measures.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert measures.spearman([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0)


# -- boxes
# ---------------------------------------------------------------------------------------------

BOXES = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]])


def test_iou_of_boxes_by_hand():
    other = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.2, 0.1, 0.4, 0.3], [0.6, 0.0, 0.7, 0.1]])
    assert torch.allclose(measures.iou(BOXES[:1], other), torch.tensor([[1, 1 / 3, 0]]), atol=1e-6)


def test_hits_strays_and_missed_cars_are_counted_one_by_one():
    in_sight, score = torch.tensor([True, True]), torch.ones(2, 1)
    both = torch.cat([BOXES, score], 1)

    def counts(found, true=BOXES, in_sight=in_sight):
        return tuple(count_hits(found, true, in_sight))
    assert counts(both) == (2, 0, 0)
    assert counts(both[:1]) == (1, 0, 1)
    assert counts(both[[0, 0]]) == (1, 1, 1), "the same car twice: one stray"
    assert counts(both, in_sight=torch.tensor([True, False])) == (1, 0, 0), "a hidden car"
    assert counts(both, BOXES[:0], in_sight[:0]) == (0, 2, 0)
    assert counts(both[:0]) == (0, 0, 2)


def test_precision_and_recall_of_summed_counts():
    counts = BoxCounts(3, 1, 0) + BoxCounts(0, 0, 3)
    assert (counts.precision, counts.recall) == (0.75, 0.5)
    assert (BoxCounts().precision, BoxCounts().recall) == (0, 0)


@torch.no_grad()
def test_decoding_the_target_gives_the_boxes():
    """Centre, offset in its cell, logs of width and height."""
    target = training.target_map(BOXES, torch.tensor([True, True]))
    assert int(target.centre.sum()) == 2 and (target.care == 1).all()
    assert float(target.heat.max()) == 1
    score = (target.heat[None] * 0.98 + 0.01).logit()
    (found,) = CarFinder().decode(torch.cat([score, target.values])[None])
    assert torch.allclose(found[:, :4].sort(0).values, BOXES, atol=1e-5)


def test_a_car_that_is_too_hidden_is_not_required_and_costs_nothing():
    target = training.target_map(BOXES, torch.tensor([True, False]))
    assert int(target.centre.sum()) == 1 and float(target.heat[16:, 32:].max()) < 0.01
    assert (target.care[21:24, 43:46] == 0).all() and (target.care[:12] == 1).all()


def test_the_finder_loss_is_smallest_at_the_target_and_ignores_hidden_cars():
    target = training.target_map(BOXES, torch.tensor([True, False]))
    targets = training.FinderTargets(*(tensor[None] for tensor in vars(target).values()))
    frames, draw = torch.zeros(1, 64, 128, 3, dtype=torch.uint8), BatchRandom(0, 0, 1, CPU)

    def loss(out):
        finder = training.finder_loss(lambda x: out[None], frames, targets)
        return float(finder(BatchRandom(0, 0, draw.batch, CPU))[0])
    score = torch.where(target.centre, 9.0, -9.0)
    best = torch.cat([score[None], target.values])
    missed, moved, stray, on_hidden = (best.clone() for _ in range(4))
    missed[0] = -9.0
    moved[1:3] += 0.5
    stray[0, 2, 2] = 9.0
    on_hidden[0, 22, 44] = 9.0
    assert loss(best) < 0.01
    assert min(loss(missed), loss(moved), loss(stray)) > loss(best) + 0.2
    assert loss(on_hidden) == pytest.approx(loss(best), abs=1e-4)


# -- corrupted videos, training
# ------------------------------------------------------------------------

def test_corrupted_videos_have_the_noise_and_flicker_that_were_given():
    videos = torch.zeros(2, 40, 3, 8, 8)
    grain, light = normal(2, 40, 3, 8, 8), normal(2, 40, 1, 1, 1)
    levels, none = torch.tensor([0.1, 0.0]), torch.zeros(2)
    noisy = training.corrupt(videos, levels, none, grain, light)
    flickering = training.corrupt(videos, none, levels.flip(0), grain, light)
    assert torch.allclose(noisy[0], 0.1 * grain[0]) and (noisy[1] == 0).all()
    assert torch.allclose(flickering[1], (0.1 * light[1]).expand(40, 3, 8, 8))
    assert (flickering[0] == 0).all()
    assert float(training.corrupt(videos, none + 9, none, grain, light).abs().max()) == 1


def test_the_scene_loss_is_zero_but_for_order_where_the_outputs_are_the_truth():
    """Cars, speed, noise and flicker exactly right: what is left is light and order, at logit 0."""
    n, t = 2, 8
    data = training.SceneData(torch.zeros(n, t, 64, 128, 3, dtype=torch.uint8), torch.zeros(n),
                              torch.full((n, t), 2.0), torch.full((n,), 6.0))
    draw = BatchRandom(0, 0, 4, CPU)
    draw.integers(n)
    levels = draw.uniform(3)
    noise = torch.where(levels[:, 0] < 0.5, 2 * levels[:, 0], 0.0)
    flicker = torch.where(levels[:, 1] < 0.5, 2 * levels[:, 1], 0.0)

    def truth(videos):
        frames = torch.zeros(4, t, 3)
        frames[..., 1], frames[..., 2] = 2, noise[:, None]
        speed = torch.full((4,), 6.0 / driving.MAX_SPEED)
        return frames, torch.stack([speed, noise, flicker, torch.zeros(4)], dim=1)
    loss, _ = training.scene_loss(truth, data)(BatchRandom(0, 0, 4, CPU))
    assert float(loss) == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), abs=1e-5)


@pytest.mark.parametrize("call", [lambda: SceneClassifier().features(normal(1, 8, 3, 32, 64)),
                                  lambda: SceneClassifier().features(normal(1, 1, 3, 64, 128)),
                                  lambda: CarFinder()(normal(1, 8, 3, 64, 128))])
def test_other_shapes_are_refused(call):
    with pytest.raises(ValueError, match="takes (videos|frames)"):
        call()


def test_classifiers_train_and_save_and_their_table_is_of_what_was_saved(tmp_path, monkeypatch):
    table = training.classifier_table
    monkeypatch.setattr(training, "classifier_table", lambda folder: {})
    training.train_classifiers(tmp_path, steps=2, clips=4)
    assert {path.name for path in tmp_path.iterdir()} == {"scene", "finder", "table.json"}
    monkeypatch.setattr(training, "distance_ranks", lambda classifier, videos: {})
    figures = table(tmp_path, n=4)
    assert figures["videos"] == 4 and figures["frames"] == 16
    assert 0 <= figures["night_accuracy"] <= 1


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers of driving are not shipped yet")
def test_the_stored_figures_of_the_shipped_classifiers_are_good():
    table = json.loads((SHIPPED / "table.json").read_text())
    assert table["night_accuracy"] >= 0.98 and table["cars_spearman"] >= 0.9
    assert table["speed_spearman"] >= 0.8
    assert min(table["finder_precision"], table["finder_recall"]) >= 0.9
    for kind in ("videos", "frames"):
        for how in ("noise", "flicker"):
            assert table[f"{kind}_{how}_spearman"] >= 0.9, "distances rise with what is added"


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers of driving are not shipped yet")
def test_the_shipped_classifiers_are_good_on_other_held_out_clips():
    clips = driving.clips("held_out", 12, 8, first=500)
    classifier = SceneClassifier.from_pretrained(SHIPPED / "scene")
    finder = CarFinder.from_pretrained(SHIPPED / "finder")
    assert classifier.video_head.in_features <= 64
    videos = torch.stack([video.to_float(clip.frames) for clip in clips])
    night = torch.tensor([clip.scene.night for clip in clips])
    assert (classifier.classify(videos).night == night).all()
    found = torch.tensor([len(boxes) for boxes in finder.find(videos[:, 0])])
    cars = torch.tensor([len(clip.boxes[0]) for clip in clips])
    assert float((found - cars).abs().float().mean()) < 0.5
