"""The classifiers of `driving`: networks for what a video shows, and for where the cars are.

    scene = SceneClassifier.from_pretrained(folder / "scene")      # light, cars, speed, features
    finder = CarFinder.from_pretrained(folder / "finder")          # boxes of the cars in a frame

Paper: section 4 measures with I3D features and human raters. MINI: neither fits pictures of 64x128,
so that the classifiers are our own and small. `driving_classifier_training` trains them on rendered
clips whose seeds no generator sees, before any generator. Chapters 09 and 12 use them.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vldm_mini.blocks import ResBlock, group_norm
from vldm_mini.datasets import driving
from vldm_mini.evaluation import measures
from vldm_mini.weights import Pretrained

FRAME_SIZE = (64, 128)


def _conv2d(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1), group_norm(c_out), nn.SiLU()]


def _conv3d(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    """As _conv2d over three frames; the stride is spatial."""
    return [nn.Conv3d(c_in, c_out, 3, stride=(1, stride, stride), padding=1), group_norm(c_out),
            nn.SiLU()]


# --------------------------------------------------------------------------------------------------
# What a video shows.

@dataclass(frozen=True)
class SceneClassifierConfig:
    """channels: widths at 32x64, 16x32 and 8x16."""
    channels: tuple[int, ...] = (24, 48, 64)


@dataclass(frozen=True)
class ScenePrediction:
    """Of n videos of t frames, on the CPU.

    night (n,) bool; cars (n, t) in sight in each frame; speed (n,) in m/s; frame_features (n, t, c)
    and video_features (n, c), float64.
    """
    night: Tensor
    cars: Tensor
    speed: Tensor
    frame_features: Tensor
    video_features: Tensor


class SceneClassifier(Pretrained, nn.Module):
    """Convolutions over each frame, then over all frames. Videos (b t 3 64 128) in [-1, 1].

    MINI: it also learns how much noise and flicker were added, and whether the frames are in order.
    Features that depend on light, cars and speed alone ignore flicker, and so would a distance
    between them.
    """
    config_class = SceneClassifierConfig

    def __init__(self, config: SceneClassifierConfig = SceneClassifierConfig()) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.channels
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), *_conv2d(12, a), *_conv2d(a, b, 2))
        self.frame_branch = nn.Sequential(ResBlock(b, b), *_conv2d(b, c, 2), *_conv2d(c, c))
        self.video_branch = nn.Sequential(*_conv3d(b, c, 2), *_conv3d(c, c, 2), *_conv3d(c, c))
        self.frame_head = nn.Linear(c, 3)                       # light, cars, noise
        self.video_head = nn.Linear(c, 4)                       # speed, noise, flicker, order

    def features(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """(b t 3 64 128) -> features of the frames (b t c), of the video (b c).

        Raises ValueError for another shape.
        """
        if videos.ndim != 5 or videos.shape[1] < 2 or videos.shape[2:] != (3, *FRAME_SIZE):
            raise ValueError("the scene classifier takes videos (b, t, 3, 64, 128) of two frames "
                             f"or more, got {tuple(videos.shape)}")
        b = len(videos)
        shared = self.stem(rearrange(videos, "b t c h w -> (b t) c h w"))       # (b t) c 16 32
        frames = self.frame_branch(shared).mean((2, 3))                         # (b t) c
        over_time = rearrange(shared, "(b t) c h w -> b c t h w", b=b)
        video = self.video_branch(over_time).mean((2, 3, 4))                    # b c
        return rearrange(frames, "(b t) c -> b t c", b=b), video

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """(b t 3 64 128) -> of the frames (b t 3): logit of night, cars, noise; of the video (b 4):
        speed over MAX_SPEED, noise, flicker, logit of frames out of order."""
        frames, video = self.features(videos)
        return self.frame_head(frames), self.video_head(video)

    @torch.no_grad()
    def classify(self, videos: Tensor, batch: int = 16) -> ScenePrediction:
        """(n t 3 64 128) in [-1, 1] -> ScenePrediction. Raises ValueError for another shape."""
        device = next(self.parameters()).device
        parts = [self.features(part.float().to(device)) for part in videos.split(batch)]
        frames, video = (torch.cat(part) for part in zip(*parts))
        of_frames, of_video = self.frame_head(frames).cpu(), self.video_head(video).cpu()
        speed = (of_video[:, 0] * driving.MAX_SPEED).clamp(0, driving.MAX_SPEED)
        return ScenePrediction(night=of_frames[..., 0].mean(1) > 0,
                               cars=of_frames[..., 1].clamp(min=0), speed=speed,
                               frame_features=frames.cpu().double(),
                               video_features=video.cpu().double())


# --------------------------------------------------------------------------------------------------
# Where the cars are.

@dataclass(frozen=True)
class CarFinderConfig:
    """channels: widths at 32x64 and below. threshold: scores from which a car counts as found."""
    channels: tuple[int, ...] = (32, 64)
    threshold: float = 0.4


class CarFinder(Pretrained, nn.Module):
    """Boxes as centres with sizes (Zhou et al. 2019, arXiv 1904.07850).

    Each cell of a 32x64 grid has a score for holding the centre of a car, the centre's offset in
    the cell, and the logarithms of the car's width and height. Frames (b 3 64 128) in [-1, 1].
    """
    config_class = CarFinderConfig

    def __init__(self, config: CarFinderConfig = CarFinderConfig()) -> None:
        super().__init__()
        self.config = config
        a, b = config.channels
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), *_conv2d(12, a), ResBlock(a, a))
        self.coarse = nn.Sequential(
            *_conv2d(a, b, 2), ResBlock(b, b), *_conv2d(b, b, 2), ResBlock(b, b), ResBlock(b, b),
            nn.Conv2d(b, 4 * b, 1), nn.PixelShuffle(2), ResBlock(b, b),
            nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2))
        self.out = nn.Sequential(ResBlock(a, a), group_norm(a), nn.SiLU(), nn.Conv2d(a, 5, 1))
        nn.init.constant_(self.out[-1].bias, -2.0)              # few cells hold a car

    def forward(self, frames: Tensor) -> Tensor:
        """(b 3 64 128) -> (b 5 32 64): logit of a centre, its offset in the cell (right, down), log
        of width and height as shares of the frame. Raises ValueError for another shape."""
        if frames.ndim != 4 or frames.shape[1:] != (3, *FRAME_SIZE):
            raise ValueError("the car finder takes frames (b, 3, 64, 128), "
                             f"got {tuple(frames.shape)}")
        x = self.fine(frames)
        return self.out(x + self.coarse(x))

    @torch.no_grad()
    def find(self, frames: Tensor, batch: int = 64) -> list[Tensor]:
        """Frames (n 3 64 128) in [-1, 1] -> for each the boxes (m, 5), best first, on the CPU.

        A box is x0 y0 x1 y1 in [0, 1] and its score. Raises ValueError for another shape.
        """
        device, boxes = next(self.parameters()).device, []
        for part in frames.split(batch):
            boxes += self.decode(self(part.float().to(device)).cpu())
        return boxes

    def decode(self, out: Tensor) -> list[Tensor]:
        """Outputs (b 5 h w) -> for each the boxes (m, 5), best first: local maxima of the score."""
        score = out[:, 0].sigmoid()
        highest = F.max_pool2d(score[:, None], 3, stride=1, padding=1)[:, 0]
        peak = (score == highest) & (score > self.config.threshold)
        h, w = score.shape[1:]
        found = []
        for one, one_score, one_peak in zip(out, score, peak):
            i, j = one_peak.nonzero(as_tuple=True)
            right, down, log_width, log_height = one[1:, i, j]
            x, y = (j + right) / w, (i + down) / h
            half_width, half_height = log_width.exp() / 2, log_height.exp() / 2
            boxes = torch.stack([x - half_width, y - half_height, x + half_width, y + half_height,
                                 one_score[i, j]], dim=-1).clamp(0, 1)
            boxes = boxes[boxes[:, 4].argsort(descending=True)]
            large_enough = boxes[:, 2] - boxes[:, 0] >= 0.9 * driving.MIN_BOX
            found.append(_without_overlaps(boxes[large_enough]))
        return found


def _without_overlaps(boxes: Tensor, most: float = 0.5) -> Tensor:
    """Boxes (m, 5), best first, without those whose IoU with a better one is `most` or more."""
    kept = []
    for box in boxes:
        if not kept or float(measures.iou(box[None, :4], torch.stack(kept)[:, :4]).max()) < most:
            kept.append(box)
    return torch.stack(kept) if kept else boxes[:0]


# --------------------------------------------------------------------------------------------------
# Found boxes against those of the frame.

@dataclass(frozen=True)
class BoxCounts:
    """How many boxes hit a car in sight, hit none, and how many cars were missed."""
    hits: int = 0
    strays: int = 0
    missed: int = 0

    def __add__(self, other: "BoxCounts") -> "BoxCounts":
        return BoxCounts(self.hits + other.hits, self.strays + other.strays,
                         self.missed + other.missed)

    def __iter__(self) -> Iterator[int]:
        return iter((self.hits, self.strays, self.missed))

    @property
    def precision(self) -> float:
        """Share of the found boxes that hit a car."""
        return self.hits / max(1, self.hits + self.strays)

    @property
    def recall(self) -> float:
        """Share of the cars that were hit."""
        return self.hits / max(1, self.hits + self.missed)


def count_hits(found: Tensor, true: Tensor, in_sight: Tensor, least: float = 0.4) -> BoxCounts:
    """Boxes found (n, 5), best first, against those of the frame (m, 4), in_sight (m,) bool.

    A hit has an IoU of `least` with a car in sight that no better box has hit. A box on a car that
    is not in sight is neither a hit nor a stray.
    """
    left, hits, strays = in_sight.clone(), 0, 0
    for box in found:
        overlap = measures.iou(box[None, :4], true)[0] if len(true) else torch.zeros(0)
        on_left = torch.where(left, overlap, torch.zeros_like(overlap))
        on_hidden = torch.where(in_sight, torch.zeros_like(overlap), overlap)
        if len(overlap) and float(on_left.max()) >= least:
            left[int(on_left.argmax())] = False
            hits += 1
        elif not (len(overlap) and float(on_hidden.max()) >= least):
            strays += 1
    return BoxCounts(hits, strays, int(left.sum()))
