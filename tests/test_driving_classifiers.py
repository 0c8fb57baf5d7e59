"""The classifiers of `driving`: what they answer on cases that are known exactly, and that the shipped ones are good."""
import json
from pathlib import Path

import pytest
import torch

from tests.tiny import normal
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_classifiers, driving_samples, measures
from vldm_mini.evaluation.driving_classifiers import CarFinder, SceneClassifier, corrupt, hits, target_map
from vldm_mini.training import rng

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "checkpoints" / "driving" / "classifiers"


# -- distances --------------------------------------------------------------------------------------------------------

def test_the_frechet_distance_of_gaussians_is_the_formula():
    """For independent features: sum of (difference of means)^2 + (difference of deviations)^2."""
    x, y = normal(20000, 3), normal(20000, 3, seed=1)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, -2.0])
    expected = float((shift ** 2 + (scale - 1) ** 2).sum())
    assert measures.frechet(x, y * scale + shift) == pytest.approx(expected, rel=0.03)
    assert measures.frechet(x, x) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(normal(3, 3, seed=2).double())[0]
    assert measures.frechet(x, y) == pytest.approx(measures.frechet(x.double() @ turn, y.double() @ turn), rel=1e-6)


def test_the_frechet_distance_agrees_with_the_square_root_of_the_product():
    x, y = normal(500, 5).double(), (normal(400, 5, seed=1) @ normal(5, 5, seed=2)).double()
    a, b = x.T.cov(), y.T.cov()
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    assert measures.frechet(x, y) == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace()
                                                        - 2 * roots), rel=1e-9)


def test_a_report_has_an_interval_around_the_distance_and_a_floor_under_a_worse_set():
    real, found = normal(400, 4), 0.3 + normal(300, 4, seed=1)
    report = driving_samples.frechet_report(found, real, torch.Generator().manual_seed(0))
    assert report["interval"][0] < report["distance"] * 1.2 and report["distance"] < report["interval"][1]
    assert report["floor"] < 0.5 * report["distance"] and (report["n"], report["m"]) == (300, 400)


def test_too_few_samples_for_a_covariance_are_refused():
    with pytest.raises(ValueError, match="of 8 features needs more samples than that on both sides, got 8 and 20"):
        measures.frechet(normal(8, 8), normal(20, 8))


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


# -- boxes ------------------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]])


def test_iou_of_boxes_by_hand():
    other = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.2, 0.1, 0.4, 0.3], [0.6, 0.0, 0.7, 0.1]])
    assert torch.allclose(measures.iou(BOXES[:1], other), torch.tensor([[1, 1 / 3, 0]]), atol=1e-6)


def test_hits_strays_and_missed_cars_are_counted_one_by_one():
    seen, score = torch.tensor([True, True]), torch.ones(2, 1)
    both = torch.cat([BOXES, score], 1)
    assert hits(both, BOXES, seen) == (2, 0, 0)
    assert hits(both[:1], BOXES, seen) == (1, 0, 1)
    assert hits(both[[0, 0]], BOXES, seen) == (1, 1, 1)                                 # the same car twice: one stray
    assert hits(both, BOXES, torch.tensor([True, False])) == (1, 0, 0)                  # on a hidden car: neither
    assert hits(both, BOXES[:0], seen[:0]) == (0, 2, 0)
    assert hits(both[:0], BOXES, seen) == (0, 0, 2)


@torch.no_grad()
def test_the_finder_reads_back_what_the_target_says():
    """Decoded, the target of a frame is its boxes: middle, place in its square, logs of width and height."""
    heat, values, middle, care = target_map(BOXES, torch.tensor([True, True]))
    assert int(middle.sum()) == 2 and (care == 1).all() and float(heat.max()) == 1
    (found,) = CarFinder()._decode(torch.cat([(heat[None] * 0.98 + 0.01).logit(), values])[None])
    assert torch.allclose(found[:, :4].sort(0).values, BOXES, atol=1e-5)


def test_a_car_that_is_too_hidden_is_not_asked_for_and_costs_nothing():
    heat, _, middle, care = target_map(BOXES, torch.tensor([True, False]))
    assert int(middle.sum()) == 1 and float(heat[16:, 32:].max()) < 0.01 and (care[21:24, 43:46] == 0).all()
    assert (care[:12] == 1).all()


# -- what is judged ---------------------------------------------------------------------------------------------------

def test_spoiled_films_have_the_noise_and_flicker_that_were_asked_for():
    films, draw = torch.zeros(2, 40, 3, 8, 8), lambda: [rng(0, 0, k) for k in range(2)]
    noisy, flickering = (corrupt(films, torch.tensor(n), torch.tensor(f), draw())
                         for n, f in (([0.1, 0.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.1])))
    assert float(noisy[0].std()) == pytest.approx(0.1, rel=0.05) and (noisy[1] == 0).all()
    assert float(flickering[1, :, 0, 0, 0].std()) == pytest.approx(0.1, rel=0.4) and (flickering[0] == 0).all()
    assert (flickering[1] == flickering[1, :, :1, :1, :1]).all()


@pytest.mark.parametrize("call", [lambda: SceneClassifier().features(normal(1, 8, 3, 32, 64)),
                                  lambda: SceneClassifier().features(normal(1, 1, 3, 64, 128)),
                                  lambda: CarFinder()(normal(1, 8, 3, 64, 128))])
def test_other_shapes_are_refused(call):
    with pytest.raises(ValueError, match="wants f"):
        call()


def test_judges_train_save_and_say_what_they_are_worth(tmp_path, monkeypatch):
    """Two steps on four drives; what is read back is what was measured."""
    table = driving_classifiers.classifier_table
    monkeypatch.setattr(driving_classifiers, "classifier_table", lambda folder: {})
    driving_classifiers.train_classifiers(tmp_path, steps=2, drives=4)
    assert {path.name for path in tmp_path.iterdir()} == {"scene", "finder", "table.json"}
    monkeypatch.setattr(driving_classifiers, "distance_ranks", lambda classifier, videos: {})
    figures = table(tmp_path, n=4)
    assert figures["films"] == 4 and figures["frames"] == 16 and 0 <= figures["night_accuracy"] <= 1


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the classifiers of driving are not shipped yet")
def test_the_shipped_judges_are_good_on_held_out_drives():
    table = json.loads((SHIPPED / "table.json").read_text())
    assert table["night_accuracy"] >= 0.98 and table["cars_spearman"] >= 0.9 and table["speed_spearman"] >= 0.8
    assert min(table["finder_precision"], table["finder_recall"]) >= 0.9
    assert min(value for name, value in table.items() if name.endswith("_spearman")) >= 0.8
    assert min(table[f"{kind}_{how}_spearman"] for kind in ("films", "frames") for how in ("noise", "flicker")) >= 0.9
    assert SceneClassifier.from_pretrained(SHIPPED / "scene").of_film.in_features <= 64
    clips = driving.clips("held_out", 12, 8, first=500)                                 # others than those of the table
    classify, finder = SceneClassifier.from_pretrained(SHIPPED / "scene"), CarFinder.from_pretrained(SHIPPED / "finder")
    films = torch.stack([video.to_float(clip.frames) for clip in clips])
    said = classify.classify(films)
    assert (said.night == torch.tensor([clip.scene.night for clip in clips])).all()
    found = finder.find(films[:, 0])
    cars = torch.tensor([len(clip.boxes[0]) for clip in clips])
    assert float((torch.tensor([len(boxes) for boxes in found]) - cars).abs().float().mean()) < 0.5
