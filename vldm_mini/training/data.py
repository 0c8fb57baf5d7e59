"""What stages train on: clips, packed clips, cached latents, and windows drawn on the device.

A set is `driving`, a set of the catalogue (`actions`), a folder of videos, or a file that
`python -m vldm_mini data pack` wrote, for machines that cannot read videos or have no network.
"""
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import machine, weights
from ..autoencoder import Autoencoder
from ..boxes import box_map
from ..datasets import driving, video
from ..datasets.driving import DrivingClip
from ..datasets.video.loading import long_enough
from .randomness import BatchRandom
from .sizes import Size

Words = tuple                                 # (("action", ("bend", ...)), ...): labels and classes


# --------------------------------------------------------------------------------------------------
# Clips.

def load_clips(data: str, size: Size) -> tuple[list, list]:
    """-> (clips to train on, clips held out), objects with a `name`, `frames`
    uint8 (t h w 3) and labels.

    Clips shorter than a training window are left out with one warning that names them.
    """
    if data == "driving":
        splits = ("train", size.clips), ("held_out", 16)
        return tuple(driving.clips(split, n, height=size.pixels) for split, n in splits)
    needed = video.span(size.frames, size.stride)
    if is_packed(data):
        clips = long_enough(unpack(data, size), needed, data)
    else:
        clips = video.load(data, size=size.pixels, min_frames=needed)
    return video.split(clips)


def fingerprint(clips: list) -> str:
    """sha256 over what a run learns from: content, order, labels and their meanings.

    Of rendered clips: their names, and a frame of a few of them, which another renderer changes.
    """
    if not isinstance(clips[0], DrivingClip):
        return video.fingerprint(clips)
    digest = hashlib.sha256(" ".join(clip.name for clip in clips).encode())
    for clip in clips[::max(1, len(clips) // 8)]:
        digest.update(clip.scene.render(clip.times[:1], clip.height).tobytes())
    return digest.hexdigest()


def rendered(clips: list) -> Iterator[Tensor]:
    """The frames of each clip, uint8 (t h w 3)."""
    for frames in _of_each(_frames_of, clips):
        yield torch.from_numpy(frames)


def _frames_of(clip: DrivingClip) -> np.ndarray:
    # an array: tensors would travel between processes through one open file each
    return clip.frames.numpy()


def _truth_of(clip: DrivingClip) -> tuple[np.ndarray, list[np.ndarray]]:
    boxes = clip.boxes
    return clip.labels(boxes).numpy(), boxes


def _of_each(function: Callable, clips: list) -> Iterator:
    """function(clip) of each clip, in order; by several processes where clips are rendered and
    there are cores for it."""
    workers = machine.threads()
    if workers < 4 or len(clips) < 16 or not isinstance(clips[0], DrivingClip):
        yield from map(function, clips)
        return
    # spawn: forking a process that holds a GPU is not allowed. One thread each: there are many
    # workers
    with _environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield from pool.map(function, clips, chunksize=8)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Inside, these environment variables are set, for processes that are started there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --------------------------------------------------------------------------------------------------
# Packed clips.

PACKED = ".clips.safetensors"


def is_packed(data: str) -> bool:
    """True for a file that `pack` wrote."""
    return str(data).endswith(PACKED)


def pack(data: str, size: Size, path: str | Path) -> int:
    """Write all clips of a set as uint8 into one file -> its size in bytes.

    A clip that is the mirror image of another one is stored as that fact. path ends in
    .clips.safetensors. Raises ValueError for `driving`, which any machine renders itself.
    """
    if data == "driving":
        raise ValueError("driving needs no packing: every machine renders it; give --data driving")
    if not is_packed(path):
        raise ValueError(f"a file of packed clips ends in {PACKED}, got {path}")
    clips = video.load(data, size=size.pixels)
    kept, entries, seen = [], [], {}
    for clip in clips:
        flipped = clip.frames.flip(2)
        source = seen.get(_digest(flipped))
        if source is None:
            seen[_digest(clip.frames)] = len(entries)
            kept.append(clip.frames)
        entries.append(dict(
            name=clip.name, labels=clip.labels, words=clip.words, fps=clip.fps,
            caption=clip.caption, group=clip.group, mirror=clip.mirror, frames=len(clip.frames),
            mirror_of=source))
    about = json.dumps(dict(pixels=size.pixels, clips=entries))
    text = torch.tensor(list(about.encode()), dtype=torch.uint8)
    weights.save_tensors(path, dict(frames=torch.cat(kept), about=text))
    return Path(path).stat().st_size


def unpack(path: str | Path, size: Size) -> list[video.VideoClip]:
    """Read what `pack` wrote. Raises ValueError if it was packed for another height."""
    tensors = weights.load_tensors(path, cure="pack it again: python -m vldm_mini data pack NAME")
    about = json.loads(bytes(tensors["about"].tolist()))
    if about["pixels"] != size.pixels:
        raise ValueError(f"{path} holds frames {about['pixels']} pixels high, and size {size.name} "
                         f"needs {size.pixels}: pack it again with --size {size.name}")
    clips, at = [], 0
    for entry in about["clips"]:
        length, source = entry.pop("frames"), entry.pop("mirror_of")
        if source is None:
            frames = tensors["frames"][at:at + length]
            at += length
        else:
            frames = clips[source].frames.flip(2)
        clips.append(video.VideoClip(frames=frames, **entry))
    return clips


def _digest(frames: Tensor) -> bytes:
    return hashlib.sha256(frames.contiguous().numpy().tobytes()).digest()


# --------------------------------------------------------------------------------------------------
# Windows on the device.

@dataclass(frozen=True)
class Windows:
    """Where the windows of a batch lie: the clip of each (b,), its frames in the store (b, t)."""
    clip: Tensor
    frames: Tensor


class FrameStore:
    """Frames of all clips in one tensor (n ...), on the device, and windows of them.

    clips: [(t ...)] of one shape per frame, uint8 or half. Raises ValueError for clips that are too
    short for a window, naming them.
    """

    def __init__(self, clips: list[Tensor], device: torch.device, frames: int, stride: int = 1,
                 names: list[str] | None = None) -> None:
        self.window, self.stride, self.span = frames, stride, video.span(frames, stride)
        names = names or [f"clip {i}" for i in range(len(clips))]
        short = []
        for name, clip in zip(names, clips):
            if len(clip) < self.span:
                short.append(f"{name} ({len(clip)})")
        if short:
            raise ValueError(f"{frames} frames {stride} apart take {self.span} frames of video; "
                             f"these clips are shorter: {', '.join(short)}; leave them out")
        lengths = torch.tensor([len(clip) for clip in clips])
        self.frames = torch.cat(clips).to(device)
        self.first = (lengths.cumsum(0) - lengths).to(device)
        self.starts = (lengths - self.span + 1).to(device)
        self.offsets = stride * torch.arange(frames, device=device)

    def windows(self, draw: BatchRandom) -> Windows:
        """One window a sample. Clips have equal chances whatever their length."""
        clip = draw.integers(len(self.first))
        start = draw.integers(self.starts[clip])
        return Windows(clip, (self.first[clip] + start)[:, None] + self.offsets)

    def at(self, windows: Windows) -> Tensor:
        """The frames of windows, (b t ...), in the store's type."""
        return self.frames[windows.frames]


def to_float(frames: Tensor) -> Tensor:
    """uint8 (... h w 3) -> float (... 3 h w) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


# --------------------------------------------------------------------------------------------------
# Latents: the encoder runs once over the set.

@dataclass(frozen=True)
class Latents:
    """A set as its autoencoder encodes it.

    clips: [(t c h w)] in half precision. labels: (clips, n) long, or (clips, t, n) where they
    change from frame to frame. label_names: for each label its name and its classes, held-out ones
    included. fps: of the clips. boxes: where they are known, of each clip, for each frame, (n, 4).
    """
    clips: list
    labels: Tensor
    label_names: Words
    fps: float
    boxes: list | None = None
    names: list = field(default_factory=list)
    fingerprint: str = ""

    @property
    def classes(self) -> tuple[int, ...]:
        """The number of classes of each label, which is also its null label."""
        return tuple(len(meanings) for _, meanings in self.label_names)

    def frame_labels(self) -> Tensor:
        """The labels of every frame of all clips in a row: (frames, n) float."""
        rows = []
        for clip, labels in zip(self.clips, self.labels):
            rows.append(labels if labels.ndim == 2 else labels.expand(len(clip), -1))
        return torch.cat(rows).float()

    def box_maps(self) -> Tensor:
        """The box map of every frame of all clips in a row: (frames, 4, h, w) in half precision."""
        height, width = self.clips[0].shape[2:]
        return torch.stack([box_map(boxes, height, width).half()
                            for clip in self.boxes for boxes in clip])


@torch.no_grad()
def encode_clips(model: Autoencoder, clips: list) -> list[Tensor]:
    """Encode every frame of every clip (objects with `frames`) -> [(t c h w)] half, on the CPU."""
    device = next(model.parameters()).device
    found = []
    for frames in rendered(clips):
        parts = [model.encode(to_float(part.to(device))).half() for part in frames.split(64)]
        found.append(torch.cat(parts).cpu())
    return found


def vocabulary(clips: list) -> Words:
    """What the labels of clips mean: (("action", ("bend", ...)), ...).

    A class that no clip has is named by its number.
    """
    meanings: dict[str, dict[int, str]] = {}
    for clip in clips:
        for name, value in clip.labels.items():
            meanings.setdefault(name, {})[value] = str(clip.words.get(name, value))
    found = []
    for name, seen in meanings.items():
        found.append((name, tuple(seen.get(k, str(k)) for k in range(max(seen) + 1))))
    return tuple(found)


def cached_latents(data: str, out: str | Path, clips: list, others: list = ()) -> Latents:
    """The clips as Latents, encoded once by out/autoencoder and kept beside the run.

    The cache's name holds the hash of the encoder and of the clips' content. others: clips whose
    labels belong to the vocabulary as well. Raises FileNotFoundError where there is no autoencoder.
    """
    folder = Path(out) / "autoencoder"
    if not (folder / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no autoencoder in {out}; first: python -m vldm_mini train "
                                f"autoencoder --data {data}")
    content = fingerprint(clips)
    key = hashlib.sha256((weights.sha256(folder / weights.WEIGHTS) + content).encode()).hexdigest()
    path = Path(out) / "latents" / f"{key[:16]}.safetensors"
    if not path.is_file():
        model = Autoencoder.from_pretrained(folder).to(machine.device())
        tensors = {f"{i:06d}": clip for i, clip in enumerate(encode_clips(model, clips))}
        weights.save_tensors(path, tensors | (driving_truth(clips) if data == "driving" else {}))
    tensors = weights.load_tensors(path, cure="delete it; the clips are then encoded again")
    encoded = [tensors[name] for name in sorted(tensors) if name.isdigit()]
    names = [clip.name for clip in clips]
    if data == "driving":
        return Latents(encoded, tensors["labels"], driving.LABEL_NAMES, clips[0].fps,
                       _boxes_of(tensors), names, content)
    labels = torch.stack([video.label_vector(clip) for clip in clips])
    label_names = vocabulary([*clips, *others])
    return Latents(encoded, labels, label_names, clips[0].fps, None, names, content)


def driving_truth(clips: list) -> dict[str, Tensor]:
    """Of every frame: labels (clips, t, 2), number of boxes `cars` (clips, t); all boxes (n, 4)."""
    labels, boxes = zip(*_of_each(_truth_of, clips))
    flat = [torch.from_numpy(some).float() for clip in boxes for some in clip]
    return dict(labels=torch.from_numpy(np.stack(labels)), boxes=torch.cat(flat),
                cars=torch.tensor([[len(some) for some in clip] for clip in boxes]))


def _boxes_of(tensors: dict[str, Tensor]) -> list:
    cars = tensors["cars"]
    of_clips = tensors["boxes"].split(cars.sum(1).tolist())
    return [boxes.split(number.tolist()) for boxes, number in zip(of_clips, cars)]
