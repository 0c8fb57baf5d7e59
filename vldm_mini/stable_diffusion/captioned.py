"""Captioned frames and clips that mini-sd learns from, as latents and tokens on the device.

Three sets: people (`actions`, without the person and the combinations that are held out), signs and
driving. Frames of driving are squeezed to a square, as Stable Diffusion's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vldm_mini.datasets import driving, video
from vldm_mini.training.data import FrameStore, Windows, rendered, to_float
from vldm_mini.training.randomness import BatchRandom

from .captions import Facts, captions
from .mini import LENGTH, MiniSize

SHARES = {"actions": 0.5, "signs": 0.1, "driving": 0.4}      # MINI: of the samples of a batch
DRIVING_FPS = 7.5
DRIVING_CLIPS, DRIVING_FRAMES = 240, 16
TICKETS = 1000


@dataclass(frozen=True)
class CaptionedClip:
    """frames uint8 (t h w 3), square; facts: of each frame. stride: between frames of a window."""

    frames: Tensor
    facts: list[Facts]
    source: str
    stride: int
    name: str


def square(frames: Tensor, side: int) -> Tensor:
    """uint8 (t h w 3) -> (t side side 3); what is wider than high is squeezed."""
    if frames.shape[1:3] == (side, side):
        return frames
    x = F.interpolate(frames.movedim(-1, 1).float(), size=(side, side), mode="area")
    return x.round().clamp(0, 255).byte().movedim(1, -1)


def load(size: MiniSize, sources: tuple[str, ...] = tuple(SHARES),
         driving_clips: int = DRIVING_CLIPS) -> list[CaptionedClip]:
    """The clips to train on. Raises as `video.load` where a set is not here and cannot be fetched.

    Nothing of person 8 and of the held-out combinations of `actions` is among them.
    """
    found = []
    if "actions" in sources:
        for clip in video.split(video.load("actions", size=size.pixels))[0]:
            facts = Facts(action=clip.labels["action"], person=clip.labels["person"])
            found.append(CaptionedClip(clip.frames, [facts] * len(clip.frames), "actions",
                                       size.stride, clip.name))
    if "signs" in sources:
        for clip in video.load("signs", size=size.pixels):
            facts = Facts(sign=clip.words["sign"])
            found.append(CaptionedClip(clip.frames, [facts] * len(clip.frames), "signs",
                                       size.stride, clip.name))
    if "driving" in sources:
        length = max(DRIVING_FRAMES, size.frames)
        clips = [driving.DrivingClip(seed, length, size.pixels, DRIVING_FPS)
                 for seed in driving.seeds("train", driving_clips)]
        for clip, frames in zip(clips, rendered(clips)):
            facts = [Facts(night=bool(night), cars=int(cars)) for night, cars in clip.labels()]
            found.append(CaptionedClip(square(frames, size.pixels), facts, "driving", 1, clip.name))
    return found


class Texts:
    """Token ids of all captions, with those of each Facts next to one another.

    ids: (n, LENGTH) long; the first row is the empty text. first, count: (facts,) of each Facts.
    """

    def __init__(self, tokenizer: Any, facts: list[Facts], device: torch.device) -> None:
        texts, self.first_of, self.count_of = [""], [], []
        for one in facts:
            said = captions(one)
            self.first_of.append(len(texts))
            self.count_of.append(len(said))
            texts += said
        encoded = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)
        self.ids = torch.tensor(encoded.input_ids, device=device)
        self.first = torch.tensor(self.first_of, device=device)
        self.count = torch.tensor(self.count_of, device=device)

    def draw(self, facts: Tensor, draw: BatchRandom, drop: float) -> Tensor:
        """A caption for each sample, empty with probability `drop`. facts (b,) -> ids (b l)."""
        row = self.first[facts] + draw.integers(self.count[facts])
        return self.ids[torch.where(draw.uniform() < drop, 0, row)]


class Captioned:
    """Clips of one stride on the device: frames or latents with their captions, drawn in batches.

    The sets have the shares SHARES of a batch, whatever their numbers of clips.
    """

    def __init__(self, clips: list[CaptionedClip], stored: list[Tensor], tokenizer: Any,
                 frames: int, device: torch.device) -> None:
        usable = [i for i, clip in enumerate(clips) if len(clip.frames) >= video.span(
            frames, clip.stride)]
        clips, stored = [clips[i] for i in usable], [stored[i] for i in usable]
        known = sorted({fact for clip in clips for fact in clip.facts}, key=repr)
        number = {fact: i for i, fact in enumerate(known)}
        self.facts = torch.tensor([number[fact] for clip in clips for fact in clip.facts],
                                  device=device)
        self.texts = Texts(tokenizer, known, device)
        stride = max(clip.stride for clip in clips)
        self.store = FrameStore(stored, device, frames, 1)
        self.strides = torch.tensor([clip.stride for clip in clips], device=device)
        lengths = torch.tensor([len(one) for one in stored], device=device)
        self.starts = lengths - (frames - 1) * self.strides
        self.tickets = _tickets(clips).to(device)
        self.frames, self.stride = frames, stride

    def windows(self, draw: BatchRandom) -> Windows:
        """One window a sample."""
        clip = self.tickets[draw.integers(len(self.tickets))]
        start = draw.integers(self.starts[clip])
        steps = torch.arange(self.frames, device=clip.device) * self.strides[clip][:, None]
        return Windows(clip, (self.store.first[clip] + start)[:, None] + steps)

    def batch(self, draw: BatchRandom, drop: float) -> tuple[Tensor, Tensor]:
        """-> stored windows (b t ...), token ids (b l) of the caption of the middle frame."""
        windows = self.windows(draw)
        facts = self.facts[windows.frames[:, self.frames // 2]]
        return self.store.at(windows), self.texts.draw(facts, draw, drop)


def _tickets(clips: list[CaptionedClip]) -> Tensor:
    """Numbers of clips, as often as their set's share of TICKETS asks for."""
    found = []
    for source in sorted({clip.source for clip in clips}):
        members = [i for i, clip in enumerate(clips) if clip.source == source]
        wanted = max(1, round(TICKETS * SHARES[source] / len(members)))
        found += members * wanted
    return torch.tensor(found)


@torch.no_grad()
def encode(autoencoder: nn.Module, clips: list[CaptionedClip]) -> list[Tensor]:
    """Latents (t c h w) of each clip as diffusion uses them, in half precision, on the CPU."""
    device, factor = autoencoder.device, autoencoder.config.scaling_factor
    found = []
    for clip in clips:
        parts = [autoencoder.encode(to_float(part.to(device))).latent_dist.mode() * factor
                 for part in clip.frames.split(64)]
        found.append(torch.cat(parts).half().cpu())
    return found
