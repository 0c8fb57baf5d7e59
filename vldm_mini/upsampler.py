"""Super-resolution by diffusion: a network that is told a small picture makes the large one.

Paper: section 3.4, eq. (5). An image upsampler first, of pixels or of latents; temporal layers then make it one of
video, with the image upsampler as it was. Trained on patches, used at any size. Chapter 08 walks it.

    upsampler = VideoUpsampler.from_pretrained("driving")                   # or kind="latent"
    large = upsampler(small)                                                # (b t 3 h w) -> (b t 3 4h 4w)
"""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import machine
from .autoencoder import Autoencoder
from .blocks import sinusoidal_embedding
from .context import tiles
from .diffusion import Schedule, add_noise, ddim, ddim_times, rng
from .temporal import TemporalConv, TemporalLayers, TimeConv, VideoModel
from .unet import UNet, UNetConfig
from .weights import shipped

FACTOR = 4
# MINI: of pixels what is diffused is not the picture but what bicubic interpolation of the given lacks, in units in which
# its variance is about 1 (measured on `driving`: 0.077 in [-1, 1]). The paper diffuses the picture; a network of our size
# then spends its strength on colours that it was told
DETAIL = 12.0
TAU_GAMMA = 100                               # the most noise on what is given that a network of ours has met
KINDS = {"pixel": "upsampler", "latent": "latent_upsampler"}        # and the folders of weights that hold them


@dataclass(frozen=True)
class UpsamplerConfig(UNetConfig):
    """A U-Net at the small picture's resolution. `patch`: insertion_points of a side that are folded into channels.

    MINI: of pixels 4x4 are one place with 48 channels (space to depth): a sixteenth of the cost, and the small picture
    fits without being made large first. Of latents with f = 4 one place is one latent.
    MINI: twice as many channels come out of pixels as go in: what is drawn, and a gain with which the noisy input itself
    is added to it. To say "all of this is noise" (v = alpha / sigma x) takes 48 numbers a place, exactly; through layers
    64 wide they came out smeared, as grain in each frame.
    """
    in_channels: int = 48
    out_channels: int = 96
    channels: tuple = (64, 96)
    attention: tuple = (False, False)
    concat_channels: int = 3
    local: bool = True
    patch: int = FACTOR


class Upsampler(UNet):
    """forward(x, tau, low, tau_gamma): x (b c ph pw) noisy detail (or latents), low (b 3 h w) the small picture, with
    noise of the level tau_gamma (b,) on it -> prediction like x. c is 3 for pixels; h and w must be divisible by
    2^(resolutions - 1).
    """
    config_class = UpsamplerConfig

    def __init__(self, config=UpsamplerConfig()):
        super().__init__(config)
        c, emb = config.channels[0], config.emb_channels
        self.level_embed = nn.Sequential(nn.Linear(c, emb), nn.SiLU(), nn.Linear(emb, emb))

    def embed(self, tau, tau_gamma):
        """Both noise levels (b,) -> one vector (b, emb)."""
        # MINI: as tau is, and added; the paper does not say how. The public x4 upscaler has a table of 1000 rows
        level = sinusoidal_embedding(tau_gamma.expand(len(tau)), self.config.channels[0])
        return super().embed(tau, None) + self.level_embed(level)

    def forward(self, x, tau, low, tau_gamma):
        x = F.pixel_unshuffle(x, self.config.patch)                                          # (b c ph pw) -> (b p^2c h w)
        drawn, *gain = super().forward(x, tau, tau_gamma, low).split(x.shape[1], dim=1)
        return F.pixel_shuffle(drawn + gain[0] * x if gain else drawn, self.config.patch)


class SidewaysConv(TemporalConv):
    """TemporalConv whose first convolution, on the network's way up, also looks at the eight insertion_points around.

    MINI: detail moves from place to place, and what draws it is the way up. All convolutions 3x3x3 would be too many
    sums for a laptop; 3x1x1 everywhere, as the paper has it, sees the same place in the next frame and no other.
    """

    def __init__(self, place):
        super().__init__(place)
        self.conv1 = TimeConv(place.channels, space=3 if place.name.startswith("up") else 1)


def degraded(schedule, low, tau_gamma, eps):
    """Noise augmentation: c = alpha_tau_gamma low + sigma_tau_gamma eps. low, eps (b ...), tau_gamma (b,) long.

    The network is made to doubt the small picture, and told how much: what another model made is never quite like what
    was made small. MINI: tau_gamma = 0 is no noise at all. The schedule has a hundredth there, new in each frame, and
    it came out as grain where the film stands still.
    """
    noisy = add_noise(schedule, low, eps, tau_gamma)                                           # paper, section 3.4
    return torch.where((tau_gamma > 0).view(-1, *[1] * (low.ndim - 1)), noisy, low)


def shrunk(x):
    """The small film of a large one: the mean of 4x4 pixels. (... 3 4h 4w) -> (... 3 h w)."""
    return F.avg_pool2d(x.flatten(0, -4), FACTOR).unflatten(0, x.shape[:-3])


def enlarged(low):
    """Bicubic interpolation: what no network is needed for. (... 3 h w) -> (... 3 4h 4w)."""
    large = F.interpolate(low.flatten(0, -4), scale_factor=FACTOR, mode="bicubic", align_corners=False)
    return large.unflatten(0, low.shape[:-3])


def bicubic(low):
    """The film that all others are held against, in [-1, 1]. (... 3 h w) -> (... 3 4h 4w)."""
    return enlarged(low).clamp(-1, 1)


def detail(x, given):
    """What the given small film lacks of the large one. (... 3 4h 4w), (... 3 h w).

    Of variance about 1 where no noise lies on what is given; that noise is to be taken off as well.
    """
    return DETAIL * (x - enlarged(given))


def with_detail(z, given):
    """The large film: the inverse of `detail`."""
    return enlarged(given) + z / DETAIL


class VideoUpsampler:
    """A small film (b t 3 h w) -> one four times as large, in [-1, 1]. Image upsampler theta, temporal layers phi.

    autoencoder: None: diffusion in pixels; else in its latents, and it decodes them frame by frame.
    precision: "fp32", "bf16", or None for the faster one here by a short timing (machine.probe).
    """

    def __init__(self, theta, layers, autoencoder=None, precision=None):
        self.theta, self.layers, self.autoencoder = theta, layers, autoencoder
        self.model, self.schedule = VideoModel(theta, layers), Schedule.linear()
        self.device = next(theta.parameters()).device
        self.precision = precision or machine.probe_precision(self.device)

    @classmethod
    def from_pretrained(cls, name, kind="pixel", device=None):
        """name: shipped weights ("driving"), or a folder that holds upsampler/ or latent_upsampler/."""
        if kind not in KINDS:
            raise ValueError(f"an upsampler is of {' or '.join(KINDS)}s, not {kind!r}")
        own = any((Path(name) / part).is_dir() for part in KINDS.values())
        folder, device = (Path(name) if own else shipped(name)) / KINDS[kind], device or machine.device()
        if not (folder / "image").is_dir():
            raise ValueError(f"these weights hold no {KINDS[kind]}; train it: python -m vldm_mini train "
                             f"{KINDS[kind]}, or use weights that have it")
        theta = Upsampler.from_pretrained(folder / "image").to(device)
        layers = TemporalLayers.from_pretrained(folder / "temporal", theta, conv=SidewaysConv).to(device)
        coder = Autoencoder.from_pretrained(folder / "autoencoder").to(device) if kind == "latent" else None
        return cls(theta, layers, coder)

    def __call__(self, low, **how):
        """`parts` as one film."""
        return torch.cat(list(self.parts(low, **how)), dim=1)

    def parts(self, low, seed=0, tau_gamma=0, steps=10, alpha=None, frames=8, overlap=4, tile=None, margin=16,
              progress=None):
        """The film in parts of `frames` frames, as they are made: memory does not extend with its length.

        low: (b t 3 h w) in [-1, 1], or uint8. alpha None: as learned; 1: the image upsampler, frame by frame, from the
        same noise. tau_gamma: level of the noise that is put on what is given, up to TAU_GAMMA. Each part sees
        `overlap` frames more on both sides. tile: (height, width) in small pixels of what is made at once, all if None;
        it sees `margin` more on each side. A frame's noise depends on (seed, its number) alone. Raises ValueError for
        sides that the network cannot halve as often as it does, and for a level that it has not met.
        """
        if low.ndim != 5 or low.shape[2] != 3 or not low.shape[1]:
            raise ValueError(f"an upsampler takes films (b, t, 3, h, w), got {tuple(low.shape)}")
        if tile is not None and (not isinstance(tile, (tuple, list)) or len(tile) != 2):
            raise ValueError(f"a tile is (height, width) in small pixels, or None for all at once; got {tile!r}")
        least = 2 ** (len(self.theta.config.channels) - 1)
        if odd := [n for n in (*low.shape[3:], *(tile or ()), margin if tile else 0) if n % least or n < 0]:
            raise ValueError(f"height, width, tile and margin must be multiples of {least} small pixels, got {odd[0]}")
        if not (isinstance(tau_gamma, int) and 0 <= tau_gamma <= TAU_GAMMA):
            raise ValueError(f"tau_gamma is a whole number from 0 (no noise) to {TAU_GAMMA}, got {tau_gamma}")
        times, spans = ddim_times(steps), tiles(low.shape[1], frames, 0 if alpha == 1 else overlap)
        rows, columns = (tiles(side, part, margin) for side, part in zip(low.shape[3:], tile or low.shape[3:]))
        return self._parts(low, seed, tau_gamma, times, alpha, spans, rows, columns, progress)

    @torch.no_grad()
    def _parts(self, low, seed, tau_gamma, times, alpha, spans, rows, columns, progress):
        for seen, kept in progress(spans) if progress else spans:
            some = low[:, seen].to(self.device)
            some = some if some.is_floating_point() else some / 127.5 - 1
            level = torch.full((len(some),), tau_gamma, dtype=torch.long, device=self.device)
            given, noise = self.given(some, seen.start, seed, level), self.start(some, seen.start, seed)
            self.layers.set_alpha(alpha)
            try:
                x = self.whole(given, noise, level, times, rows, columns, image=alpha == 1)
            finally:
                self.layers.set_alpha(None)
            yield x[:, kept.start - seen.start:][:, :kept.stop - kept.start]

    def noise(self, shape, seed, first, kind):
        """(b t c h w), frame first + k's from (seed, first + k)."""
        one = lambda k, i: torch.randn(shape[2:], generator=rng(seed, 2_000_000 + 2 * k + kind, i))     # noqa: E731
        return torch.stack([torch.stack([one(first + k, i) for k in range(shape[1])]) for i in range(shape[0])]) \
            .to(self.device)

    def start(self, low, first, seed):
        """What the walk starts from, (b t c ph pw)."""
        p, c = self.theta.config.patch, self.theta.config.in_channels // self.theta.config.patch ** 2
        return self.noise((*low.shape[:2], c, p * low.shape[3], p * low.shape[4]), seed, first, 0)

    def given(self, low, first, seed, level):
        """The small film as the network is told it: with noise of that level (b,) on it."""
        return degraded(self.schedule, low, level, self.noise(low.shape, seed, first, 1))

    def whole(self, given, noise, level, times, rows, columns, image=False):
        """Some frames at once, of one tile or of several; rows, columns: of `tiles`."""
        out = [torch.cat([self.square(given, noise, level, times, row, column, image) for column in columns], dim=-1)
               for row in rows]
        return torch.cat(out, dim=-2)

    def square(self, given, noise, level, times, row, column, image=False):
        """One tile: seen with its margin, and what is kept of it in pixels. row, column: of `tiles`."""
        p, (rows, high), (columns, wide) = self.theta.config.patch, row, column
        at = lambda part, size: slice(size * part.start, size * part.stop)                              # noqa: E731
        low, z = given[..., rows, columns], noise[..., at(rows, p), at(columns, p)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            ask = lambda z, tau: self.model(z, tau, low=low, tau_gamma=level, image=image).float()      # noqa: E731
            z = ddim(self.schedule, ask, z, times, "v")
            x = self.autoencoder.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2]).float() if self.autoencoder else \
                with_detail(z, low)
        keep = lambda kept, seen: slice(FACTOR * (kept.start - seen.start), FACTOR * (kept.stop - seen.start))  # noqa: E731
        return x[..., keep(high, rows), keep(wide, columns)].clamp(-1, 1)
