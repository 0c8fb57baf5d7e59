"""Super-resolution by diffusion: a network that is given a small video generates the large one.

Paper: section 3.4, eq. (5). First an image upsampler, of pixels or of latents; then temporal layers
make it a video upsampler, with the image upsampler unchanged. Trained on patches, used at any size.
Chapter 08 walks through it.

    upsampler = VideoUpsampler.from_pretrained("driving")               # or kind="latent"
    large = upsampler(low)                                          # (b t 3 h w) -> (b t 3 4h 4w)
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import machine
from .autoencoder import Autoencoder
from .blocks import sinusoidal_embedding
from .context import tiles
from .diffusion import Schedule, add_noise, ddim, ddim_times, rng
from .temporal import InsertionPoint, TemporalConv, TemporalLayers, TimeConv, VideoModel
from .unet import UNet, UNetConfig
from .weights import shipped

FACTOR = 4
# MINI: in pixels, not the large picture is diffused but what bicubic interpolation of the small
# one lacks, times DETAIL, so that its variance is about 1 (measured on `driving`: deviation 0.077
# in [-1, 1]). The paper diffuses the picture; a network of our size then spends its capacity on
# colours that the small picture holds already
DETAIL = 12.0
TAU_GAMMA = 100                               # the highest level of noise augmentation in training
KINDS = {"pixel": "upsampler", "latent": "latent_upsampler"}     # and their folders
Span = tuple[slice, slice]                    # of `tiles`: what is seen, what of it is kept


@dataclass(frozen=True)
class UpsamplerConfig(UNetConfig):
    """A U-Net at the small picture's resolution. patch: patch x patch positions become channels.

    MINI: 4x4 pixels are one position with 48 channels (space to depth): a sixteenth of the cost,
    and the small picture is concatenated without enlarging it first. In latents with f = 4, one
    position is one latent.
    MINI: in pixels the network has twice as many output as input channels: an output, and a gain
    with which the noisy input itself is added to it. "All of this is noise" (v = alpha / sigma x)
    needs 48 numbers a position exactly; through layers of width 64 they came out blurred, as grain.
    """
    in_channels: int = 48
    out_channels: int = 96
    channels: tuple = (64, 96)
    attention: tuple = (False, False)
    concat_channels: int = 3
    local: bool = True
    patch: int = FACTOR


class Upsampler(UNet):
    """The image upsampler: forward(x, tau, low, tau_gamma) -> prediction like x.

    x: (b c ph pw) noisy detail (c = 3) or latents. tau: (b,). low: (b 3 h w) the small picture with
    noise of level tau_gamma (b,) on it. h and w must be divisible by 2^(resolutions - 1).
    """
    config_class = UpsamplerConfig

    def __init__(self, config: UpsamplerConfig = UpsamplerConfig()):
        super().__init__(config)
        c, emb = config.channels[0], config.emb_channels
        self.level_embed = nn.Sequential(nn.Linear(c, emb), nn.SiLU(), nn.Linear(emb, emb))

    def embed(self, tau: Tensor, tau_gamma: Tensor) -> Tensor:
        """Both noise levels (b,) -> one vector (b, emb)."""
        # MINI: tau_gamma is embedded as tau is, and added; the paper does not say how. The public
        # x4 upscaler has a table of 1000 rows
        level = sinusoidal_embedding(tau_gamma.expand(len(tau)), self.config.channels[0])
        level = level.to(self.level_embed[0].weight.dtype)
        return super().embed(tau, None) + self.level_embed(level)

    def forward(self, x: Tensor, tau: Tensor, low: Tensor, tau_gamma: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, self.config.patch)                  # (b c ph pw) -> (b p^2c h w)
        y, *gain = super().forward(x, tau, tau_gamma, low).split(x.shape[1], dim=1)
        if gain:
            y = y + gain[0] * x
        return F.pixel_shuffle(y, self.config.patch)


class SidewaysConv(TemporalConv):
    """TemporalConv whose first convolution is 3x3x3 in the network's way up, 3x1x1 elsewhere.

    MINI: detail moves from pixel to pixel, and the way up generates it. All convolutions 3x3x3
    would cost too much for a laptop; with 3x1x1 everywhere, as in the paper, a position depends on
    the same position of the next frame and on no other.
    """

    def __init__(self, point: InsertionPoint) -> None:
        super().__init__(point)
        self.conv1 = TimeConv(point.channels, space=3 if point.name.startswith("up") else 1)


def degraded(schedule: Schedule, low: Tensor, tau_gamma: Tensor, eps: Tensor) -> Tensor:
    """Noise augmentation, c = alpha_tau_gamma low + sigma_tau_gamma eps. -> like low.

    low, eps: (b ...); tau_gamma: (b,) long. The network learns not to rely on every pixel of the
    small video, and is conditioned on how noisy it is: generated small videos differ from
    downsampled ones. MINI: tau_gamma = 0 is no noise at all. The schedule has sigma = 0.01 there,
    new in each frame, which appeared as grain where a video does not move.
    """
    noisy = add_noise(schedule, low, eps, tau_gamma)                            # paper, section 3.4
    return torch.where((tau_gamma > 0).view(-1, *[1] * (low.ndim - 1)), noisy, low)


def shrunk(x: Tensor) -> Tensor:
    """The small video of a large one, the mean of 4x4 pixels. (... 3 4h 4w) -> (... 3 h w)."""
    return F.avg_pool2d(x.flatten(0, -4), FACTOR).unflatten(0, x.shape[:-3])


def enlarged(low: Tensor) -> Tensor:
    """Bicubic interpolation, which needs no network. (... 3 h w) -> (... 3 4h 4w)."""
    large = F.interpolate(low.flatten(0, -4), scale_factor=FACTOR, mode="bicubic",
                          align_corners=False)
    return large.unflatten(0, low.shape[:-3])


def bicubic(low: Tensor) -> Tensor:
    """The baseline, bicubic interpolation clamped to [-1, 1]. (... 3 h w) -> (... 3 4h 4w)."""
    return enlarged(low).clamp(-1, 1)


def detail(x: Tensor, given: Tensor) -> Tensor:
    """What bicubic interpolation of the small video `given` (... 3 h w) lacks of x (... 3 4h 4w).

    Its variance is about 1 if there is no noise on `given`; that noise is part of it.
    """
    return DETAIL * (x - enlarged(given))


def with_detail(z: Tensor, given: Tensor) -> Tensor:
    """The large video: the inverse of `detail`."""
    return enlarged(given) + z / DETAIL


class VideoUpsampler:
    """A small video (b t 3 h w) -> one four times as large, in [-1, 1].

    theta: image upsampler; layers: its temporal layers. autoencoder: None diffuses pixels; else its
    latents, which it decodes frame by frame. precision: "fp32", "bf16", or None for the faster one
    on this machine by a short timing (machine.probe_precision). Sampling changes nothing in the
    object, so that several threads may call it at the same time.
    """

    def __init__(self, theta: Upsampler, layers: TemporalLayers,
                 autoencoder: Autoencoder | None = None, precision: str | None = None):
        self.theta, self.layers, self.autoencoder = theta, layers, autoencoder
        self.model = VideoModel(theta, layers)
        self.schedule = getattr(theta, "schedule", None) or Schedule.linear()
        self.prediction = getattr(theta, "prediction", "v")
        self.precision = precision or machine.probe_precision(self.device)

    @classmethod
    def from_pretrained(cls, name: str | Path, kind: str = "pixel",
                        device: str | torch.device | None = None) -> "VideoUpsampler":
        """name: shipped weights ("driving"), or a folder that holds upsampler/ (kind "pixel") or
        latent_upsampler/ (kind "latent"). Raises ValueError if it does not."""
        if kind not in KINDS:
            raise ValueError(f"an upsampler is of {' or '.join(KINDS)}s, not {kind!r}")
        own = any((Path(name) / part).is_dir() for part in KINDS.values())
        folder = (Path(name) if own else shipped(name)) / KINDS[kind]
        if not (folder / "image").is_dir():
            raise ValueError(f"these weights hold no {KINDS[kind]}; train it: python -m vldm_mini "
                             f"train {KINDS[kind]}, or use weights that have it")
        device = device or machine.device()
        theta = Upsampler.from_pretrained(folder / "image").to(device)
        layers = TemporalLayers.from_pretrained(folder / "temporal", theta, conv=SidewaysConv)
        latent = kind == "latent"
        coder = Autoencoder.from_pretrained(folder / "autoencoder").to(device) if latent else None
        return cls(theta, layers.to(device), coder)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.theta.parameters()).device

    def to(self, device: str | torch.device) -> "VideoUpsampler":
        """Move all networks, in place. -> self."""
        for part in (self.theta, self.layers, self.autoencoder):
            if part is not None:
                part.to(device)
        return self

    def __call__(self, low: Tensor, **how: Any) -> Tensor:
        """`parts` in one tensor (b t 3 4h 4w)."""
        return torch.cat(list(self.parts(low, **how)), dim=1)

    def parts(self, low: Tensor, seed: int = 0, tau_gamma: int = 0, steps: int = 10,
              alpha: float | None = None, frames: int = 8, overlap: int = 4,
              tile: tuple[int, int] | None = None, margin: int = 16,
              progress: Callable | None = None) -> Iterator[Tensor]:
        """The video in parts of `frames` frames: memory does not grow with its length.

        low: (b t 3 h w) in [-1, 1], or uint8. alpha: None as trained; 1 is the image upsampler,
        frame by frame, from the same noise. tau_gamma: level of the noise augmentation, 0 to
        TAU_GAMMA. Each part is computed with up to `overlap` neighbouring frames on both sides.
        tile: (height, width) in small pixels of what is computed at once, None for all; `margin`
        small pixels around it are computed and dropped. A frame's noise depends on (seed, its
        number) alone. Raises ValueError for sides that the network cannot halve as often as it
        does, and for a tau_gamma that is out of range.
        """
        if low.ndim != 5 or low.shape[2] != 3 or not low.shape[1]:
            raise ValueError(f"an upsampler takes videos (b, t, 3, h, w), got {tuple(low.shape)}")
        if tile is not None and (not isinstance(tile, (tuple, list)) or len(tile) != 2):
            raise ValueError("a tile is (height, width) in small pixels, or None for all at once; "
                             f"got {tile!r}")
        least = 2 ** (len(self.theta.config.channels) - 1)
        sides = [*low.shape[3:], *(tile or ()), margin if tile else 0]
        odd = [side for side in sides if side % least or side < 0]
        if odd:
            raise ValueError(f"height, width, tile and margin must be multiples of {least} small "
                             f"pixels, got {odd[0]}")
        if not (isinstance(tau_gamma, int) and 0 <= tau_gamma <= TAU_GAMMA):
            raise ValueError(f"tau_gamma is a whole number from 0 (no noise) to {TAU_GAMMA}, "
                             f"got {tau_gamma}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies in [0, 1], got {alpha}")
        times = ddim_times(steps, self.schedule.num_steps)
        spans = tiles(low.shape[1], frames, 0 if alpha == 1 else overlap)
        tile = tile or low.shape[3:]
        rows, columns = (tiles(side, part, margin) for side, part in zip(low.shape[3:], tile))
        return self._parts(low, seed, tau_gamma, times, alpha, spans, rows, columns, progress)

    @torch.no_grad()
    def _parts(self, low, seed, tau_gamma, times, alpha, spans, rows, columns, progress):
        for seen, kept in progress(spans) if progress else spans:
            some = low[:, seen].to(self.device)
            some = some if some.is_floating_point() else some / 127.5 - 1
            level = torch.full((len(some),), tau_gamma, dtype=torch.long, device=self.device)
            given = self.given(some, seen.start, seed, level)
            noise = self.start(some, seen.start, seed)
            x = self.whole(given, noise, level, times, rows, columns, alpha)
            first, last = kept.start - seen.start, kept.stop - seen.start
            yield x[:, first:last]

    def noise(self, shape: tuple, seed: int, first: int, kind: int) -> Tensor:
        """Noise (b t c h w); that of frame first + k depends on (seed, first + k, kind) alone.

        kind: 0 for the start of sampling, 1 for noise augmentation.
        """
        b, t = shape[:2]
        def frame(number: int, clip: int) -> Tensor:
            generator = rng(seed, 2_000_000 + 2 * number + kind, clip)
            return torch.randn(shape[2:], generator=generator)

        clips = [torch.stack([frame(first + k, i) for k in range(t)]) for i in range(b)]
        return torch.stack(clips).to(self.device)

    def start(self, low: Tensor, first: int, seed: int) -> Tensor:
        """The noise that sampling starts from, (b t c ph pw), for small frames from `first` on."""
        p = self.theta.config.patch
        c = self.theta.config.in_channels // p ** 2
        return self.noise((*low.shape[:2], c, p * low.shape[3], p * low.shape[4]), seed, first, 0)

    def given(self, low: Tensor, first: int, seed: int, level: Tensor) -> Tensor:
        """The small video as the network receives it: with noise of that level (b,) on it."""
        return degraded(self.schedule, low, level, self.noise(low.shape, seed, first, 1))

    def whole(self, given: Tensor, noise: Tensor, level: Tensor, times: list[int],
              rows: list[Span], columns: list[Span], alpha: float | None = None) -> Tensor:
        """Some frames, (b t 3 4h 4w), tile by tile."""
        bands = []
        for row in rows:
            squares = [self.square(given, noise, level, times, row, column, alpha)
                       for column in columns]
            bands.append(torch.cat(squares, dim=-1))
        return torch.cat(bands, dim=-2)

    def square(self, given: Tensor, noise: Tensor, level: Tensor, times: list[int], row: Span,
               column: Span, alpha: float | None = None) -> Tensor:
        """One tile in [-1, 1]: computed with its margin, which is then dropped."""
        p, (rows, kept_rows), (columns, kept_columns) = self.theta.config.patch, row, column
        low = given[..., rows, columns]
        z = noise[..., _scaled(rows, p), _scaled(columns, p)]
        how = dict(low=low, tau_gamma=level, image=alpha == 1, alpha=alpha)

        def denoise(z: Tensor, tau: Tensor) -> Tensor:
            return self.model(z, tau, **how).float()

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            z = ddim(self.schedule, denoise, z, times, self.prediction)
            if not torch.isfinite(z).all():
                raise FloatingPointError("the upsampler gave values that are not finite: its "
                                         "weights are damaged or its training diverged")
            if self.autoencoder is None:
                x = with_detail(z, low)
            else:
                x = self.autoencoder.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2]).float()
        kept_rows = _scaled(kept_rows, FACTOR, rows.start)
        kept_columns = _scaled(kept_columns, FACTOR, columns.start)
        return x[..., kept_rows, kept_columns].clamp(-1, 1)


def _scaled(span: slice, factor: int, start: int = 0) -> slice:
    """A span of small pixels, counted from `start`, in units `factor` times as fine."""
    return slice(factor * (span.start - start), factor * (span.stop - start))
