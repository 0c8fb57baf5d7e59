"""Does a generated drive show the light and the cars that were asked for, and a car where a box is?

day_night_accuracy, crowdedness_spearman, crowdedness_mae: of 200 films, light as the classify sees it, and the number of
cars that the finder counts (mean over frames) against the number asked for. box_hit_rate: of the boxes told (cars at
least 8 pixels wide, half visible), the share with a found car on it (IoU 0.4); stray_car_rate: of the cars found, the
share that no box asked for. finder_precision, finder_recall: the finder's own, on real held-out frames.
Beside them: image_* at alpha = 1, the same with the wrong labels and boxes (shuffled among the films), boxes not told.
"""
import torch

from vldm_mini import weights
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.evaluation.driving_classifiers import hits


def counted(finder, x):
    """Cars found in films uint8 (n t h w 3): mean over frames, (n,)."""
    flat = driving_samples.floats(x.flatten(0, 1)[:, None])[:, 0]
    return torch.tensor([len(boxes) for boxes in finder.find(flat)]).float().view(x.shape[:2]).mean(1)


def obeyed(classify, finder, x, labels):
    """-> day_night_accuracy, crowdedness_spearman, crowdedness_mae."""
    night, cars = classify.classify(driving_samples.floats(x)).night, counted(finder, x)
    return {"day_night_accuracy": round(float((night == labels[:, 0].bool()).float().mean()), 4),
            "crowdedness_spearman": round(measures.spearman(cars, labels[:, 1]), 4),
            "crowdedness_mae": round(float((cars - labels[:, 1]).abs().mean()), 3)}


def on_boxes(finder, x, boxes):
    """Frames uint8 (n 1 h w 3) against boxes -> box_hit_rate, stray_car_rate."""
    found = finder.find(driving_samples.floats(x)[:, 0])
    counts = [hits(one, true, torch.ones(len(true)).bool()) for one, true in zip(found, boxes)]
    hit, stray, missed = (sum(c) for c in zip(*counts))
    return {"box_hit_rate": round(hit / max(1, hit + missed), 4),
            "stray_car_rate": round(stray / max(1, hit + stray), 4)}


def run(folder=None, n=driving_samples.N):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    classify, finder = driving_samples.classifiers(folder)
    x, labels = driving_samples.films(folder, n=n)
    image, _ = driving_samples.films(folder, alpha=1, n=n)
    frames, boxes = driving_samples.boxed(folder, n=n)
    plain, _ = driving_samples.boxed(folder, told=False, n=n)
    real, clips = driving_samples.real(n)
    truth = torch.stack([clip.labels()[0] for clip in clips])
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    own = [hits(found, all_boxes[:, :4], seen) for found, (all_boxes, seen) in
           zip(finder.find(driving_samples.floats(real[:, :1])[:, 0]), map(_first_boxes, clips))]
    hit, stray, missed = (sum(c) for c in zip(*own))
    return {**obeyed(classify, finder, x, labels), **on_boxes(finder, frames, boxes),
            "finder_precision": round(hit / (hit + stray), 4), "finder_recall": round(hit / (hit + missed), 4), "n": n,
            "boxes": sum(map(len, boxes)), "image": obeyed(classify, finder, image, labels),
            "real, first frame's labels": obeyed(classify, finder, real[:, :1].expand(-1, 2, -1, -1, -1), truth),
            "baselines": {"labels of other films": obeyed(classify, finder, x, labels[mixed]),
                          "boxes of other frames": on_boxes(finder, frames, [boxes[i] for i in mixed]),
                          "boxes not told": on_boxes(finder, plain, boxes)}}


def _first_boxes(clip):
    from vldm_mini.datasets import driving
    boxes = torch.from_numpy(clip.scene.boxes(0.0)).float()
    return boxes, (boxes[:, 2] - boxes[:, 0] >= driving.MIN_BOX) & (boxes[:, 4] >= driving.MIN_VISIBLE)
