"""Do generated clips of `driving` show the requested light and cars, and a car in each requested
box?

day_night_accuracy, crowdedness_spearman, crowdedness_mae: of 200 clips, the light by the scene
classifier, and the number of cars that the car finder counts (mean over frames) against the
requested number. box_hit_rate: of the requested boxes (cars at least 8 pixels wide, half visible)
the share with a found car on it (IoU 0.4); stray_car_rate: of the found cars the share outside
every requested box. finder_precision, finder_recall: the finder's own, on real held-out frames.
Beside them: image_* at alpha = 1, the labels and boxes of other clips (permuted), and no boxes at
all.
"""
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.evaluation.driving_classifiers import (
    BoxCounts,
    CarFinder,
    SceneClassifier,
    count_hits,
)

from ._common import number, shipped_folder


def count_cars(finder: CarFinder, videos: Tensor) -> Tensor:
    """Cars found in videos uint8 (n t h w 3): mean over frames, (n,)."""
    found = finder.find(video.to_float(videos.flatten(0, 1)))
    return torch.tensor([len(boxes) for boxes in found]).float().view(videos.shape[:2]).mean(1)


def against_labels(classifier: SceneClassifier, finder: CarFinder, videos: Tensor,
                   labels: Tensor) -> dict:
    """-> day_night_accuracy, crowdedness_spearman, crowdedness_mae."""
    night = classifier.classify(video.to_float(videos)).night
    cars = count_cars(finder, videos)
    return {"day_night_accuracy": number((night == labels[:, 0].bool()).float().mean(), 4),
            "crowdedness_spearman": number(measures.spearman(cars, labels[:, 1]), 4),
            "crowdedness_mae": number((cars - labels[:, 1]).abs().mean(), 3)}


def against_boxes(finder: CarFinder, frames: Tensor, boxes: Sequence[Tensor]) -> dict:
    """Frames uint8 (n 1 h w 3) -> box_hit_rate, stray_car_rate."""
    counts = BoxCounts()
    for found, true in zip(finder.find(video.to_float(frames[:, 0])), boxes):
        counts += count_hits(found, true, torch.ones(len(true)).bool())
    return {"box_hit_rate": round(counts.recall, 4),
            "stray_car_rate": round(counts.strays / max(1, counts.hits + counts.strays), 4)}


def finder_alone(finder: CarFinder, frames: Tensor, clips: Sequence) -> BoxCounts:
    """The finder on real first frames uint8 (n h w 3)."""
    counts = BoxCounts()
    for found, clip in zip(finder.find(video.to_float(frames)), clips):
        boxes = torch.from_numpy(clip.scene.boxes(0.0)).float()
        wide = boxes[:, 2] - boxes[:, 0] >= driving.MIN_BOX
        counts += count_hits(found, boxes[:, :4], wide & (boxes[:, 4] >= driving.MIN_VISIBLE))
    return counts


def run(folder: Path | None = None, n: int = driving_samples.N) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    classifier, finder = driving_samples.classifiers(folder)
    videos, labels = driving_samples.generated(folder, n=n)
    image, _ = driving_samples.generated(folder, alpha=1, n=n)
    frames, boxes = driving_samples.generated_with_boxes(folder, n=n)
    without_boxes, _ = driving_samples.generated_with_boxes(folder, conditioned=False, n=n)
    real, clips = driving_samples.real(n)
    real_labels = torch.stack([clip.labels()[0] for clip in clips])
    first_frames = real[:, :1].expand(-1, 2, -1, -1, -1)
    permuted = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    finder_counts = finder_alone(finder, real[:, 0], clips)
    return {**against_labels(classifier, finder, videos, labels),
            **against_boxes(finder, frames, boxes),
            "finder_precision": round(finder_counts.precision, 4),
            "finder_recall": round(finder_counts.recall, 4), "n": n,
            "boxes": sum(map(len, boxes)),
            "image": against_labels(classifier, finder, image, labels),
            "real, first frame's labels": against_labels(classifier, finder, first_frames,
                                                         real_labels),
            "baselines": {
                "labels of other videos": against_labels(classifier, finder, videos,
                                                         labels[permuted]),
                "boxes of other frames": against_boxes(finder, frames,
                                                       [boxes[i] for i in permuted]),
                "no boxes": against_boxes(finder, without_boxes, boxes)}}
