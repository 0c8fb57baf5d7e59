"""The stages of Fig. 5, one module each, and the one command that trains all of them in order.

    python -m vldm_mini train image --data driving --size s       one stage
    python -m vldm_mini train all --data driving --size s         every stage, from random weights
    python -m vldm_mini train all --data actions --size m --minutes 9

Stages of one set lie side by side in one folder; each reads what the earlier ones left there.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ... import weights
from ..record import Record
from . import autoencoder, boxes, context, decoder, image, temporal, upsampler
from .classifiers import train_classifiers
from .common import Job, Request, run_job, write_json


@dataclass(frozen=True)
class Stage:
    """prepare(request) -> Job. share: of the minutes of `train all`. only: sets that can train it,
    all if empty."""
    prepare: Callable[[Request], Job]
    share: float
    only: tuple[str, ...] = ()


# in the order in which they are trained; the image model, on which all others stand, takes longest
STAGES = {
    "autoencoder": Stage(autoencoder.prepare, 0.12),
    "image": Stage(image.prepare, 0.30),
    "temporal": Stage(temporal.prepare, 0.20),
    "decoder": Stage(decoder.prepare, 0.06),
    "prediction": Stage(context.prediction, 0.12),
    "interpolation": Stage(context.interpolation, 0.08, ("driving",)),
    "upsampler_image": Stage(upsampler.image_part, 0.06, ("driving", "signs")),
    "upsampler_temporal": Stage(upsampler.temporal_part, 0.04, ("driving", "signs")),
    "boxes": Stage(boxes.prepare, 0.04, ("driving",)),
    "latent_upsampler_autoencoder": Stage(upsampler.autoencoder_part, 0.03, ("driving", "signs")),
    "latent_upsampler_image": Stage(partial(upsampler.image_part, kind="latent"), 0.06,
                                    ("driving", "signs")),
    "latent_upsampler_temporal": Stage(partial(upsampler.temporal_part, kind="latent"), 0.04,
                                       ("driving", "signs")),
}
# what one name on the command line trains
GROUPS = {"upsampler": ("upsampler_image", "upsampler_temporal"),
          "latent_upsampler": ("latent_upsampler_autoencoder", "latent_upsampler_image",
                               "latent_upsampler_temporal")}
IMAGE_TO_BOXES = tuple(STAGES)[:9]            # what `train all` trains: Fig. 5 and the box model
SAMPLING_SHARE = 0.05                         # of the minutes, kept for a first video


def stage_names() -> list[str]:
    """What `python -m vldm_mini train` knows."""
    return [*(name for name in STAGES if not name.partition("_")[2]), *GROUPS, "classifiers", "all"]


def train_stage(name: str, request: Request) -> Record | dict | None:
    """Train one stage, or a group of them, or all. Raises ValueError for a name that is not one."""
    if name == "all":
        return train_all(request)
    if name == "classifiers":
        return train_classifiers(request)
    if name not in STAGES and name not in GROUPS:
        raise ValueError(f"unknown stage {name!r}; choose one of {', '.join(stage_names())}")
    weights.writable(request.out)
    parts = GROUPS.get(name, (name,))
    record = None
    for part in parts:
        minutes = request.minutes / len(parts) if request.minutes else None
        record = _train(part, request, minutes)
    return record


def stages_for(data: str) -> list[str]:
    """The stages of `train all` that this data can train."""
    return [name for name in IMAGE_TO_BOXES if not STAGES[name].only or data in STAGES[name].only]


def train_all(request: Request) -> Record | None:
    """Every stage in order, from random weights to a video in out/sample. Resumes where it stopped.

    request.minutes are divided by fixed shares: a stage gets its share of what is left, rendering
    and encoding included.
    """
    weights.writable(request.out)
    names = stages_for(request.data)
    left = None if request.minutes is None else request.minutes * (1 - SAMPLING_SHARE)
    record = None
    for number, name in enumerate(names):
        minutes = None
        if left is not None:
            shares = [STAGES[other].share for other in names[number:]]
            minutes = left * shares[0] / sum(shares)
        began = time.monotonic()
        record = _train(name, request, minutes)
        if left is not None:
            left -= _minutes_of(request, name, (time.monotonic() - began) / 60)
    sample_video(request)
    return record


def _train(name: str, request: Request, minutes: float | None) -> Record:
    """One stage within its minutes (None: as many steps as the size has)."""
    began = time.monotonic()
    job = STAGES[name].prepare(request)
    deadline = None
    if minutes is not None:
        # rendering and encoding may take half of a stage's minutes; what they take beyond that the
        # later stages pay
        deadline = max(began + 60 * minutes, time.monotonic() + 30 * minutes)
    if request.progress:
        print(f"{name}: {job.settings.batch} samples a step, in {request.folder(job.name)}",
              flush=True)
    return run_job(request, job, deadline)


def _minutes_of(request: Request, name: str, measured: float) -> float:
    """Minutes that a stage took, kept beside its run: a resumed command knows what is left."""
    path = Path(request.out) / "minutes.json"
    known = weights.read_json(path) if path.is_file() else {}
    known.setdefault(name, round(measured, 3))
    write_json(path, known)
    return known[name]


def sample_video(request: Request) -> Path | None:
    """A first video from the trained stages: out/sample.webp (and its frames as a strip).

    None on a machine without Pillow, which cannot write pictures.
    """
    if find_spec("PIL") is None:
        return None
    from ...pipeline import VideoLDM
    from ...teaching import pictures
    model = VideoLDM.from_pretrained(request.out)
    videos = model.generate(model.labels(), seed=request.seed)
    path = Path(request.out) / "sample.webp"
    pictures.movie(videos, fps=model.config.fps).save(path)
    pictures.strip(videos).save(path.with_suffix(".png"))
    return path


__all__ = ["GROUPS", "STAGES", "Request", "stage_names", "stages_for", "train_all", "train_stage"]
