"""Generated clips of `driving`, for control- and motion-driving and others.

200 clips over day and night and every number of cars, and the same 200 at alpha = 1; 200 frames
with boxes of held-out scenes. Three generation seeds, pooled. Nothing is selected.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.boxes import BoxImageLDM
from vldm_mini.datasets import driving
from vldm_mini.evaluation import samples
from vldm_mini.evaluation.driving_classifiers import CarFinder, SceneClassifier
from vldm_mini.evaluation.samples import SEEDS, Stages
from vldm_mini.pipeline import VideoLDM

WEIGHTS, N, BATCH = "driving", 200, 10


def requested_labels(n: int = N) -> Tensor:
    """n requests (n, 2), light and cars, every pair equally often."""
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(driving.MOST_CARS + 1))
    return pairs[torch.arange(n) % len(pairs)]


def classifiers(folder: Path) -> tuple[SceneClassifier, CarFinder]:
    """Both classifiers of a folder of weights."""
    return (SceneClassifier.from_pretrained(folder / "classifiers" / "scene"),
            CarFinder.from_pretrained(folder / "classifiers" / "finder"))


def kept_videos(folder: Path, make: Callable[[], Tensor], **settings: object) -> Tensor:
    """Videos uint8 (n t h w 3) from make(), or those that the same weights and settings gave
    before."""
    name = samples.key(folder, **settings)
    return samples.kept(name, lambda: {"videos": make()})["videos"]


def in_batches(n: int, make: Callable[[Tensor, int], Tensor]) -> Tensor:
    """n videos, divided among the seeds: make(indices, seed) -> (b t 3 h w). -> uint8 (n t h w
    3)."""
    out: list = [None] * n
    for number, seed in enumerate(SEEDS):
        mine = torch.arange(n)[number::len(SEEDS)]
        for k, some in enumerate(mine.split(BATCH)):
            videos = samples.to_uint8(make(some, 100 * seed + k))
            for i, one in zip(some.tolist(), videos):
                out[i] = one
            print(f"seed {seed}: {k * BATCH + len(some)} of {len(mine)}", flush=True)
    return torch.stack(out)


def generated(folder: Path, alpha: float | None = None, n: int = N) -> tuple[Tensor, Tensor]:
    """Generated clips -> uint8 (n t h w 3), requested labels (n, 2). alpha: 1 for the image
    model."""
    model, labels = VideoLDM.from_pretrained(folder), requested_labels(n)

    def make(some: Tensor, seed: int) -> Tensor:
        return model.generate(labels[some], alpha=alpha, seed=seed)
    videos = kept_videos(folder, lambda: in_batches(n, make), driving="videos", alpha=alpha, n=n)
    return videos, labels


def scenes_with_cars(n: int = N) -> tuple[list[Tensor], Tensor]:
    """Boxes [(k, 4)] and light (n,) of n held-out scenes, each with a car in sight, at one
    moment."""
    boxes, night = [], []
    for clip in driving.clips("held_out", 4 * n, 1, first=1000):
        in_sight = clip.boxes[0]
        if len(boxes) < n and len(in_sight):
            boxes.append(torch.from_numpy(in_sight).float())
            night.append(int(clip.scene.night))
    return boxes, torch.tensor(night)


def generated_with_boxes(folder: Path, conditioned: bool = True,
                         n: int = N) -> tuple[Tensor, list[Tensor]]:
    """Frames of the box model -> uint8 (n 1 h w 3), the requested boxes.

    conditioned=False: from the same noise without boxes.
    """
    model, (boxes, night) = BoxImageLDM.from_pretrained(folder), scenes_with_cars(n)
    null = driving.MOST_CARS + 1                    # the null label: no number of cars is given
    labels = torch.stack([night, torch.full_like(night, null)], dim=1)

    def make(some: Tensor, seed: int) -> Tensor:
        given = [boxes[i] for i in some] if conditioned else None
        return model.generate(labels[some], boxes=given, seed=seed)
    videos = kept_videos(folder, lambda: in_batches(n, make), driving="boxes",
                         conditioned=conditioned, n=n)
    return videos, boxes


def real(n: int = N, first: int = 3000) -> tuple[Tensor, list]:
    """Held-out clips -> uint8 (n 8 h w 3), and the DrivingClips."""
    clips = driving.clips("held_out", n, 8, first=first)
    return torch.stack([clip.frames for clip in clips]), clips


def labels_of(clips: Sequence) -> Tensor:
    """The labels that most frames of each clip have -> long (n, 2)."""
    return torch.stack([clip.labels().float().mean(0).round().long() for clip in clips])


def smooth_video(model: VideoLDM, labels: Tensor, seed: int, stage: Stages) -> Tensor:
    """From noise to 113 frames (b t 3 h w), each stage through a Stages."""
    z = stage("key frames", lambda: model.latents(labels, seed=seed))
    z = stage("to 29", lambda: model.interpolate(z, labels, 0, seed))
    z = stage("to 113", lambda: model.interpolate(z, labels, 1, seed))
    return stage("decoding", lambda: model.decode(z))
