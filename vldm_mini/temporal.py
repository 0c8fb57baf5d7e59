"""Temporal layers phi: with them an image model becomes a video model.

Paper: section 3.1, Fig. 4; details as in the same authors' Stable Video Diffusion. Chapters 01 and
04 walk through it. How the layers are called from within a backbone stands in `insertion`.

Spatial layers see `(b t) c h w`, temporal layers `b c t h w`, outside it is `b t c h w`. A temporal
layer is any module

    class MyLayer(nn.Module):
        def __init__(self, point): ...          # point.channels, ...: see InsertionPoint
        def forward(self, z, clip): ...         # z (b c t h w) -> (b c t h w); clip: see Clip

and `insert(backbone, attention=MyLayer)` puts one after each spatial layer of that kind. The layer
owns its zero-initialised end, so that a fresh layer returns z; TemporalMix around it owns the mix
and image mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .blocks import (
    Attention,
    ChannelLayerNorm,
    FeedForward,
    sinusoidal_embedding,
    zero_init,
)
from .context import LearnedDownsampling
from .diffusion import Schedule
from .insertion import Clip, InsertionPoint, TemporalLayers, insertion_points, like_backbone
from .layer_classes import LayerClass
from .weights import load_into

__all__ = [
    "Clip", "InsertionPoint", "TemporalAttention", "TemporalConv", "TemporalLayers", "TemporalMix",
    "TimeConv", "VideoModel", "band", "extend", "insert", "insertion_points", "temporal_parameters",
]


# --------------------------------------------------------------------------------------------------
# The two temporal layers of the paper (Fig. 4, right: "Conv3D layer", "temporal attention layer").

class TimeConv(nn.Conv3d):
    """Convolution of width 3 along time and `space` in space. (b c t h w) -> (b c t h w)."""

    def __init__(self, channels: int, space: int = 1) -> None:
        super().__init__(channels, channels, (3, space, space), padding=(1, space // 2, space // 2))

    def forward(self, z: Tensor) -> Tensor:
        if self.weight.shape[-1] > 1:
            return super().forward(z)
        # the same sums as a 2-D convolution over (t, h w), whose kernels are faster
        x = rearrange(z, "b c t h w -> b c t (h w)")
        x = F.conv2d(x, self.weight[..., 0], self.bias, padding=(1, 0))
        return x.unflatten(-1, z.shape[-2:])                                # b c t h w


class TemporalConv(nn.Module):
    """Residual block of convolutions over time (Fig. 4, "Conv3D layer"). (b c t h w) -> like it.

    MINI: group norm pools its statistics over all frames, as SVD's does: frame 3 changes frame 0
    even before the convolution, and a chunk of a video gives another result than the whole video.
    """

    def __init__(self, point: InsertionPoint) -> None:
        super().__init__()
        c = point.channels

        def norm() -> nn.Module:
            return nn.GroupNorm(point.groups, c) if point.groups else ChannelLayerNorm(c)

        channels = point.context_channels
        self.context = LearnedDownsampling(channels, c) if channels else None
        self.norm1, self.conv1 = norm(), TimeConv(c, point.space)
        self.emb = nn.Linear(point.emb_channels, c) if point.emb_channels else None
        self.regime = zero_init(nn.Embedding(point.regimes, c)) if point.regimes else None
        self.norm2, self.conv2 = norm(), zero_init(TimeConv(c, point.space))

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        # Fig. 4: c_S enters the Conv3D layers, through a learned downsampling of their own.
        # MINI: before the skip of this block, so that it has a gradient at the first step; the skip
        # of the mix is z without it
        if clip.context is not None and self.context is not None:
            z = z + self.context(clip.context, *z.shape[3:])
        skip = z
        z = self.conv1(F.silu(self.norm1(z)))
        if self.emb is not None:
            z = z + rearrange(self.emb(F.silu(clip.emb)), "b t c -> b c t 1 1")
        if self.regime is not None and clip.regime is not None:
            z = z + rearrange(self.regime(clip.regime), "b c -> b c 1 1 1")
        z = self.conv2(F.silu(self.norm2(z)))
        return z + skip


class TemporalAttention(nn.Module):
    """Each position in space attends to itself in all frames (Fig. 4, "temporal attention layer").

    Embedding of the frame's index, feed-forward, attention over frames, attention to the text,
    feed-forward: each is added to z and ends in a zero-initialised layer. (b c t h w) -> like it.
    """

    def __init__(self, point: InsertionPoint) -> None:
        super().__init__()
        c = point.channels
        last = zero_init(nn.Linear(4 * c, c))
        self.position = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), last)
        if point.ff_in:
            self.norm_in, self.ff_in = nn.LayerNorm(c), FeedForward(c, point.ff_mult)
        self.norm_time, self.time = nn.LayerNorm(c), Attention(c, point.heads)
        if point.text_channels:
            self.norm_text = nn.LayerNorm(c)
            self.text = Attention(c, point.heads, point.text_channels)
        self.norm_out, self.ff_out = nn.LayerNorm(c), FeedForward(c, point.ff_mult)

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        b, c, t, h, w = z.shape
        x = rearrange(z, "b c t h w -> (b h w) t c")                        # Fig. 4, right
        positions = clip.positions
        if positions is None:
            positions = torch.arange(t, device=z.device)
        x = x + self.position(sinusoidal_embedding(positions, c, dtype=x.dtype))      # (b h w) t c
        if hasattr(self, "ff_in"):
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.time(self.norm_time(x), mask=clip.mask)
        if hasattr(self, "text"):
            x = x + self._read_text(x, clip, b)
        x = x + self.ff_out(self.norm_out(x))
        return rearrange(x, "(b h w) t c -> b c t h w", h=h, w=w)

    def _read_text(self, x: Tensor, clip: Clip, b: int) -> Tensor:
        """Attention to the text of each clip. x (b h w) t c -> like it."""
        if clip.text is None:
            raise ValueError("these temporal layers attend to a text: give text=(b, l, d)")
        # all positions and frames of a clip share its text: no copy of the text for each of them
        t = x.shape[1]
        queries = rearrange(self.norm_text(x), "(b s) t c -> b (s t) c", b=b)
        return rearrange(self.text(queries, clip.text), "b (s t) c -> (b s) t c", t=t)


# --------------------------------------------------------------------------------------------------
# The mix (Fig. 4: after each temporal layer).

class TemporalMix(nn.Module):
    """The mix of a temporal layer with what came in, weighted by alpha (paper, section 3.1).

    z' = alpha z + (1 - alpha) layer(z): alpha = 1 is the image model. per: "scalar" for one alpha,
    as in the paper's text-to-video model, "channel" for one a channel, or a number of frames for
    one a frame. Raises ValueError for another `per`, and for an alpha of which nothing would learn.
    """

    def __init__(self, layer: nn.Module, point: InsertionPoint, alpha: float = 0.5,
                 per: str | int = "scalar") -> None:
        super().__init__()
        if not 0 < alpha < 1:
            raise ValueError("alpha starts strictly between 0 and 1 (at 1 no temporal weight would "
                             f"learn), got {alpha}")
        self.layer, self.fixed_alpha = layer, None
        # MINI: alpha = sigmoid(mix), 0.5 at first: the paper gives neither; clamped at 1 it would
        # never learn
        start = torch.tensor(math.log(alpha / (1 - alpha)))
        self.mix = nn.Parameter(start.expand(_shape_of_alpha(per, point.channels)).clone())

    @property
    def alpha(self) -> Tensor:
        """The mix in [0, 1]: of shape (), (c 1 1 1) or (t 1 1)."""
        if self.fixed_alpha is not None:
            return torch.full_like(self.mix, self.fixed_alpha)
        return self.mix.sigmoid()

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        if clip.image:
            return z                             # not multiplied by zero: 0 times NaN is NaN
        if self.mix.ndim == 3 and len(self.mix) != clip.frames:
            raise ValueError(f"the mix has one alpha a frame for {len(self.mix)} frames, and the "
                             f"clip has {clip.frames}; for any number of frames, insert with "
                             'per="scalar"')
        alpha = self.alpha if clip.alpha is None else clip.alpha
        z_t = self.layer(z, clip)
        # z' = alpha z + (1 - alpha) z_t                                    paper, section 3.1
        # in the form that is exactly z where z_t = z, and where alpha = 1; as printed it is off by
        # rounding for several numbers in a hundred
        return z + (1 - alpha) * (z_t - z)


def _shape_of_alpha(per: str | int, channels: int) -> tuple[int, ...]:
    """The shape of alpha against z (b c t h w)."""
    if per == "scalar":
        return ()
    if per == "channel":
        return (channels, 1, 1, 1)
    if isinstance(per, int) and not isinstance(per, bool) and per > 0:
        return (per, 1, 1)
    raise ValueError(f'per is "scalar", "channel" or a number of frames, got {per!r}')


# --------------------------------------------------------------------------------------------------
# Putting them into an image backbone (Fig. 4, left).

def insert(backbone: nn.Module, conv: Any = TemporalConv, attention: Any = TemporalAttention,
           where: Callable[[InsertionPoint], bool] | Iterable[str] | None = None,
           mix: Any = TemporalMix, per: str | int = "scalar", alpha: float = 0.5,
           transformer: Any = None, **options: Any) -> TemporalLayers:
    """Put temporal layers into an image backbone -> TemporalLayers. Fresh ones change nothing.

    conv, attention: the layers after residual blocks and after spatial attention, built as
    `MyLayer(point)`: a class, functools.partial(MyLayer, key=value) or dict(layer=MyLayer,
    key=value); None for none. where: a function InsertionPoint -> bool, or names of insertion
    points; None for all. mix: built as mix(layer, point, alpha, per). transformer: a layer after
    whole spatial transformers of diffusers, as AnimateDiff has. options: text_channels,
    context_channels, regimes, ff_mult, ff_in, space (see InsertionPoint).

    Backbones: our UNet and Decoder, diffusers' UNet2DConditionModel, on any device and in any
    number format; their keys stay as they were. Raises ValueError, TypeError for what cannot be
    inserted or saved.
    """
    given = {"conv": conv, "attention": attention, "mix": mix}
    if transformer is not None:
        given["transformer"] = transformer
    classes = {kind: None if make is None else LayerClass.of(make) for kind, make in given.items()}
    layers = TemporalLayers(backbone, classes, where, per, alpha, options)
    return like_backbone(layers, backbone)


def extend(layers: TemporalLayers, backbone: nn.Module, **options: Any) -> TemporalLayers:
    """The same layers with more inputs (context_channels, regimes), which start at zero weights.

    They compute what `layers` computed, until they are trained. `layers` are taken off the
    backbone. -> TemporalLayers. Raises ValueError as `insert`.
    """
    layers.remove()
    old = layers.settings
    extended = TemporalLayers(backbone, layers.classes, old["where"], old["per"], old["alpha"],
                              old["options"] | options)
    like_backbone(extended, layers).train(layers.training)
    return load_into(extended, extended.state_dict() | layers.state_dict())


def band(frames: int, reach: int) -> Tensor:
    """The attention mask of a video longer than those of training: frame i attends to frame j if
    |i - j| <= reach. (t, t) bool.

    Paper, appendix D: to a distance of 8 frames, "similar to training", which was on 8.
    MINI: so the reach is 7 there.
    """
    at = torch.arange(frames)
    return (at[:, None] - at).abs() <= reach


def temporal_parameters(layers: TemporalLayers) -> list[nn.Parameter]:
    """What temporal training trains: every parameter of phi, alphas included, and nothing else."""
    return list(layers.parameters())


class VideoModel(nn.Module):
    """f_theta,phi: an image backbone and its temporal layers as one network over clips (Fig. 4).

    forward(z, tau, **cond): z (b t c h w), tau (b,), one for all frames of a clip -> prediction
    (b t c h w). schedule, prediction: of what the network predicts; None takes those of the
    backbone, where it has them.
    """

    def __init__(self, backbone: nn.Module, layers: TemporalLayers,
                 schedule: Schedule | None = None, prediction: str | None = None) -> None:
        super().__init__()
        if not layers.hang_on(backbone):
            raise ValueError("these temporal layers are not inserted into this backbone (copy or "
                             "load both together)")
        self.backbone, self.layers = backbone, layers
        self._schedule, self._prediction = schedule, prediction

    @property
    def schedule(self) -> Schedule | None:
        """The noise schedule; None if neither the backbone nor the constructor says it."""
        return self._schedule or getattr(self.backbone, "schedule", None)

    @property
    def prediction(self) -> str | None:
        """"eps", "v" or "x0"; None if neither the backbone nor the constructor says it."""
        return self._prediction or getattr(self.backbone, "prediction", None)

    def forward(self, z: Tensor, tau: Tensor | None = None, *, image: bool = False,
                alpha: float | None = None, text: Tensor | None = None,
                positions: Tensor | None = None, mask: Tensor | None = None,
                context: Tensor | None = None, regime: Tensor | None = None, state: Any = None,
                **cond: Any) -> Tensor:
        """image: skip all temporal layers. alpha: one fixed mix in [0, 1], for this call. text,
        positions, mask, context, regime, state: for the temporal layers, see Clip.

        Each cond goes to the backbone: tensors (b, ...) are the same for all frames of a clip,
        (b t c h w) has a picture for each frame, ((b t), ...) is given as it is; they may lie in
        dicts, lists and tuples. Raises ValueError for shapes that do not fit.
        """
        if z.ndim != 5:
            raise ValueError(f"a video model takes clips (b, t, c, h, w), got {tuple(z.shape)}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies in [0, 1], got {alpha}")
        b, t = z.shape[:2]
        if text is not None and not self.layers.settings["options"].get("text_channels"):
            raise ValueError("these temporal layers take no text: insert them with "
                             "text_channels=...")
        text = cond.get("encoder_hidden_states") if text is None else text
        clip = Clip(t, positions, None, _like(text, z), _like(context, z), regime, mask, image,
                    alpha, state)
        self.layers.accept(clip, b)
        if tau is not None and tau.shape not in ((), (1,), (b,)):
            raise ValueError(f"tau must be ({b},), one for all frames of a clip, "
                             f"got {tuple(tau.shape)}")
        args = () if tau is None else (fold(tau.expand(b), b, t),)
        cond = {name: fold(value, b, t, name) for name, value in cond.items()}
        with self.layers.running(clip):
            # Fig. 4: the backbone sees a batch of images. contiguous: in the memory layout of
            # frames of video a backward pass crashes (torch 2.13, CPU)
            z = rearrange(z, "b t c h w -> (b t) c h w").contiguous()
            y = self.backbone(z, *args, **cond)
        return rearrange(getattr(y, "sample", y), "(b t) c h w -> b t c h w", t=t)


def fold(value: Any, b: int, t: int, name: str = "a condition") -> Any:
    """A condition of clips as one of frames: (b ...) or (b t c h w) -> ((b t) ...).

    Tensors inside dicts, lists and tuples are folded, all else is returned as it is. Raises
    ValueError for a tensor that belongs neither to clips nor to frames.
    """
    if isinstance(value, dict):
        return {key: fold(item, b, t, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [fold(item, b, t, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if not torch.is_tensor(value) or value.ndim == 0:
        return value
    if value.ndim == 5 and value.shape[:2] == (b, t):
        return rearrange(value, "b t ... -> (b t) ...")
    if len(value) == b:
        return repeat(value, "b ... -> (b t) ...", t=t)
    if len(value) == b * t:
        return value.view_as(value)
    raise ValueError(f"{name} has {len(value)} rows: give ({b}, ...) for {b} clips, or "
                     f"({b}, {t}, c, h, w) or ({b * t}, ...) for their frames")


def _like(value: Tensor | None, z: Tensor) -> Tensor | None:
    """In the number format of z."""
    return value if value is None else value.to(z.dtype)
