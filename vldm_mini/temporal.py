"""Temporal layers phi, and the one call that puts them into any image backbone: an image model becomes a video model.

Paper: section 3.1, Fig. 4; details as in the same authors' Stable Video Diffusion. Chapters 01 and 04 walk it.

Spatial layers see `(b t) c h w`, temporal layers `b c t h w`, outside it is `b t c h w`. A temporal layer is any module

    class MyLayer(nn.Module):
        def __init__(self, place): ...          # place.channels, place.emb_channels, ...: see InsertionPoint
        def forward(self, z, clip): ...         # z (b c t h w) -> (b c t h w); clip: see Clip

and `insert(backbone, attention=MyLayer)` puts one after each spatial layer of that kind. The backbone keeps its
modules and its keys: temporal layers hang on forward hooks. The layer owns its zero-initialised end (a fresh layer
returns z), the wrapper around it owns the mix and image mode.
"""
import inspect
import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from .blocks import (
    Attention,
    FeedForward,
    ChannelLayerNorm,
    ResBlock,
    SpatialAttention,
    sinusoidal_embedding,
    zero_init,
)
from .context import LearnedDownsampling
from .weights import CARD, CONFIG, WEIGHTS, load_into, load_tensors, packed, save_tensors, write_text


@dataclass(frozen=True)
class Clip:
    """What a temporal layer may know beside z. A new need is a new field; no signature changes."""
    frames: int                               # T
    positions: torch.Tensor | None = None     # (t,) place of each frame in the window; 0, 1, 2, ... if None
    emb: torch.Tensor | None = None           # (b, t, e) the backbone's embedding of tau (and labels)
    text: torch.Tensor | None = None          # (b, l, d) text tokens, one prompt a clip
    context: torch.Tensor | None = None       # (b, c + 1, t, h, w) c_S and nothing else (paper, section 3.2)
    regime: torch.Tensor | None = None        # (b,) long: which of several regimes (paper, section 3.3)
    mask: torch.Tensor | None = None          # (t, t) bool, True where frame i may look at frame j
    image: bool = False                       # image mode: temporal layers are skipped
    alpha: float | None = None                # one fixed mix in [0, 1] for this call; None: as learned
    state: Any = None                         # whatever a layer keeps from one window to the next


@dataclass(frozen=True)
class InsertionPoint:
    """Where a temporal layer goes, and what its width must be."""
    name: str                                 # of the spatial layer it follows
    kind: str                                 # "conv" after a residual block, "attention" after spatial attention
    channels: int
    emb_channels: int | None = None           # width of clip.emb here; None where the backbone has none (a decoder)
    text_channels: int | None = None
    context_channels: int | None = None       # c + 1 where c_S can be told
    regimes: int = 0                          # of how many regimes one is told; 0: none
    heads: int = 1
    groups: int = 32                          # of norms; 0: each place for itself, as the backbone here does
    ff_mult: int = 4
    ff_in: bool = True
    space: int = 1                            # width in space of convolutions over time: 1, 3, ...


# ---------------------------------------------------------------------------------------------------------------------
# The two temporal layers of the paper.

class TimeConv(nn.Conv3d):
    """Convolution of width 3 along time, `space` in space (1: each place for itself). (b c t h w) -> (b c t h w)."""

    def __init__(self, channels, space=1):
        super().__init__(channels, channels, (3, space, space), padding=(1, space // 2, space // 2))

    def forward(self, z):
        if self.weight.shape[-1] > 1:
            return super().forward(z)
        # the same sums as a 2-D convolution over (t, h*w), for which the kernels are faster
        x = F.conv2d(rearrange(z, "b c t h w -> b c t (h w)"), self.weight[..., 0], self.bias, padding=(1, 0))
        return x.unflatten(-1, z.shape[-2:])                                                    # b c t h w


class TemporalConv(nn.Module):
    """Residual block of convolutions over time (paper, Fig. 4, "Conv3D layer"). (b c t h w) -> (b c t h w).

    MINI: group norm pools its statistics over all frames, as SVD's does: frame 3 shifts frame 0 even before the
    convolution, and a chunk of a film is not the film's chunk. MINI: c_S is added before the block's own skip, so that
    it has a gradient at step one; the skip of the mix is the pure z (Fig. 4). The regime is added beside tau.
    """

    def __init__(self, place):
        super().__init__()
        c = place.channels
        self.context = LearnedDownsampling(place.context_channels, c) if place.context_channels else None
        norm = lambda: nn.GroupNorm(place.groups, c) if place.groups else ChannelLayerNorm(c)                  # noqa: E731
        self.norm1, self.conv1 = norm(), TimeConv(c, place.space)
        self.emb = nn.Linear(place.emb_channels, c) if place.emb_channels else None
        self.regime = zero_init(nn.Embedding(place.regimes, c)) if place.regimes else None
        self.norm2, self.conv2 = norm(), zero_init(TimeConv(c, place.space))

    def forward(self, z, clip):
        if clip.context is not None and self.context is not None:
            z = z + self.context(clip.context, *z.shape[3:])
        skip = z
        z = self.conv1(F.silu(self.norm1(z)))
        if self.emb is not None:
            z = z + rearrange(self.emb(F.silu(clip.emb)), "b t c -> b c t 1 1")
        if self.regime is not None and clip.regime is not None:
            z = z + self.regime(clip.regime)[:, :, None, None, None]
        z = self.conv2(F.silu(self.norm2(z)))
        return z + skip


class TemporalAttention(nn.Module):
    """Each place of the picture looks along time at itself (paper, Fig. 4). (b c t h w) -> (b c t h w).

    Position, feed-forward, attention over frames, attention to the text, feed-forward: each on the residual stream,
    each with a zero-initialised end.
    """

    def __init__(self, place):
        super().__init__()
        c = place.channels
        self.position = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), zero_init(nn.Linear(4 * c, c)))
        if place.ff_in:
            self.norm_in, self.ff_in = nn.LayerNorm(c), FeedForward(c, place.ff_mult)
        self.norm_time, self.time = nn.LayerNorm(c), Attention(c, place.heads)
        if place.text_channels:
            self.norm_text, self.text = nn.LayerNorm(c), Attention(c, place.heads, place.text_channels)
        self.norm_out, self.ff_out = nn.LayerNorm(c), FeedForward(c, place.ff_mult)

    def forward(self, z, clip):
        b, c, t, h, w = z.shape
        positions = torch.arange(t, device=z.device) if clip.positions is None else clip.positions
        x = rearrange(z, "b c t h w -> (b h w) t c")
        x = x + self.position(sinusoidal_embedding(positions, c).to(x.dtype))                   # (b h w) t c
        if hasattr(self, "ff_in"):
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.time(self.norm_time(x), mask=clip.mask)
        if hasattr(self, "text"):
            if clip.text is None:
                raise ValueError("these temporal layers read a text: give text=(b, l, d)")
            # queries of all insertion_points and frames share their clip's text: no copy of the text for each place
            x = x + rearrange(self.text(rearrange(self.norm_text(x), "(b s) t c -> b (s t) c", b=b), clip.text),
                              "b (s t) c -> (b s) t c", t=t)
        x = x + self.ff_out(self.norm_out(x))
        return rearrange(x, "(b h w) t c -> b c t h w", h=h, w=w)


# ---------------------------------------------------------------------------------------------------------------------
# The mix.

class TemporalMix(nn.Module):
    """out = alpha * z + (1 - alpha) * layer(z): alpha = 1 is the image model (paper, section 3.1).

    per: "scalar" as the paper's text-to-video model, "channel", or a number of frames for one alpha a frame.
    """

    def __init__(self, layer, place, alpha=0.5, per="scalar"):
        super().__init__()
        if not 0 < alpha < 1:
            raise ValueError("alpha starts strictly between 0 and 1 (at 1 no temporal weight would learn), "
                             f"got {alpha}")
        shape = {"scalar": (), "channel": (place.channels, 1, 1, 1)}.get(per) if isinstance(per, str) else (per, 1, 1)
        self.layer, self.fixed_alpha = layer, None
        # MINI: alpha = sigmoid(mix), starting at 0.5: the paper gives neither; clamped at 1 it would never learn
        self.mix = nn.Parameter(torch.full(shape, math.log(alpha / (1 - alpha))))

    @property
    def alpha(self):
        """The mix in [0, 1], as a tensor."""
        return self.mix.sigmoid() if self.fixed_alpha is None else torch.full_like(self.mix, self.fixed_alpha)

    def forward(self, z, clip):
        if clip.image:
            return z
        if self.mix.ndim == 3 and len(self.mix) != clip.frames:
            raise ValueError(f"the mix has one alpha a frame for {len(self.mix)} frames, "
                             f"and the clip has {clip.frames}; "
                             'for any number of frames, insert with per="scalar"')
        # alpha z + (1 - alpha) z_t, written so that it is z to the bit where z_t = z or alpha = 1
        alpha = self.alpha if clip.alpha is None else clip.alpha
        return z + (1 - alpha) * (self.layer(z, clip) - z)


# ---------------------------------------------------------------------------------------------------------------------
# Where temporal layers go, in our networks and in diffusers'.

def insertion_points(backbone, **options):
    """The spatial layers of a backbone that the paper follows with temporal ones, in order -> [(module, InsertionPoint)]."""
    found = []
    for name, module in backbone.named_modules():
        kind = type(module).__name__      # diffusers' classes are known by name: the core does not import diffusers
        if isinstance(module, ResBlock):
            found.append((module, InsertionPoint(name, "conv", module.c_out, module.emb_channels,
                                        groups=getattr(module.norm2, "num_groups", 0), **options)))
        elif isinstance(module, SpatialAttention):
            found.append((module, InsertionPoint(name, "attention", module.channels, heads=module.heads, **options)))
        elif kind == "ResnetBlock2D":
            emb = module.time_emb_proj.in_features if module.time_emb_proj is not None else None
            found.append((module, InsertionPoint(name, "conv", module.out_channels, emb,
                                        groups=module.norm2.num_groups, **options)))
        elif kind == "BasicTransformerBlock":
            found.append((module, InsertionPoint(name, "attention", module.dim, heads=module.attn1.heads, **options)))
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no spatial layer that temporal layers could follow")
    return found


class TemporalLayers(nn.Module):
    """The temporal layers of one backbone, named after the spatial layers they follow. Made by `insert`."""

    def __init__(self, backbone, conv, attention, alpha, per, options):
        super().__init__()
        self.settings = dict(conv=_name(conv), attention=_name(attention), alpha=alpha, per=per, options=options)
        self.classes = [make for make in (conv, attention) if make]
        self.clip, self.mixes, self.hooks = None, nn.ModuleDict(), []
        for module, place in insertion_points(backbone, **options):
            make = conv if place.kind == "conv" else attention
            if make is None:
                continue
            mix = TemporalMix(make(place), place, alpha, per)
            self.mixes[place.name.replace(".", "-")] = mix
            self.hooks.append(module.register_forward_hook(self._hook(mix), with_kwargs=True))

    def _hook(self, mix):
        def follow(module, args, kwargs, z):
            if self.clip is None or self.clip.image:
                return z
            emb = args[1] if len(args) > 1 else kwargs.get("temb")
            if type(module).__name__ != "BasicTransformerBlock" and emb is not None:
                self.clip = replace(self.clip, emb=rearrange(emb, "(b t) e -> b t e", t=self.clip.frames))
            if z.ndim == 4:
                out = mix(rearrange(z, "(b t) c h w -> b c t h w", t=self.clip.frames), self.clip)
                out = rearrange(out, "b c t h w -> (b t) c h w")
            else:                                                                              # tokens of diffusers
                out = mix(rearrange(z, "(b t) n c -> b c t n 1", t=self.clip.frames), self.clip)
                out = rearrange(out, "b c t n 1 -> (b t) n c")
            # in z's memory layout: another one means other kernels, and last bits that differ (frames of one pixel do)
            return out if out.stride() == z.stride() else torch.empty_like(z).copy_(out)
        return follow

    @contextmanager
    def watching(self, clip):
        """Inside, a call of the backbone is a call for this clip; outside, the backbone is the image model."""
        self.clip = clip
        try:
            yield
        finally:
            self.clip = None

    def accept(self, clip):
        """Raises ValueError for a clip that tells what these layers cannot hear, or not in the right shape."""
        options = self.settings["options"]
        for name, option in (("context", "context_channels"), ("regime", "regimes")):
            if getattr(clip, name) is not None and not options.get(option):
                raise ValueError(f"these temporal layers take no {name}: insert them with {option}=...")
        if clip.context is not None and clip.context.shape[1:3] != (options["context_channels"], clip.frames):
            raise ValueError(f"context is (b, c + 1, t, h, w), here with {options['context_channels']} channels and "
                             f"{clip.frames} frames, got {tuple(clip.context.shape)}")

    def alphas(self):
        """{name of the spatial layer: alpha, averaged where there are several}, in the order of the network."""
        return {name: float(mix.alpha.detach().mean()) for name, mix in self.mixes.items()}

    def set_alpha(self, alpha=None):
        """Fix alpha everywhere to a number in [0, 1], or with None go back to the learned ones."""
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies in [0, 1], got {alpha}")
        for mix in self.mixes.values():
            mix.fixed_alpha = alpha

    def remove(self):
        """Take the layers off the backbone again."""
        for hook in self.hooks:
            hook.remove()

    def save_pretrained(self, folder, card="", dtype=torch.float16):
        """phi (see weights.packed), settings, card; the source of a reader's own layers beside them."""
        save_tensors(Path(folder) / WEIGHTS, packed(self.state_dict(), dtype))
        write_text(Path(folder) / CONFIG, json.dumps(self.settings, indent=1) + "\n")
        for make in self.classes:
            if make.__module__.partition(".")[0] != __name__.partition(".")[0]:
                write_text(Path(folder) / f"{make.__name__}.py.txt", inspect.getsource(make))
        if card:
            write_text(Path(folder) / CARD, card)

    @classmethod
    def from_pretrained(cls, folder, backbone, conv=TemporalConv, attention=TemporalAttention):
        """Put the layers saved in `folder` into `backbone`. A reader's own layers: give their classes."""
        path = Path(folder) / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"no temporal layers at {folder}; give the folder that save_pretrained wrote")
        settings = json.loads(path.read_text(encoding="utf-8"))
        given = {"conv": conv if settings["conv"] else None, "attention": attention if settings["attention"] else None}
        for kind, make in given.items():
            if _name(make) != settings[kind]:
                raise ValueError(f"{folder} was made with {kind}={settings[kind]}: give that class "
                                 f"(its source may lie beside the weights as {settings[kind]}.py.txt)")
        layers = insert(backbone, **given, alpha=settings["alpha"], per=settings["per"], **settings["options"])
        return load_into(layers, load_tensors(Path(folder) / WEIGHTS), str(folder)).eval()


def _name(make):
    return make.__name__ if make else None


def insert(backbone, conv=TemporalConv, attention=TemporalAttention, alpha=0.5, per="scalar", **options):
    """Put temporal layers into an image backbone -> TemporalLayers. Fresh ones change nothing, to the bit.

    conv, attention: classes made as `make(place)`, or None for none. options: text_channels, context_channels, regimes,
    ff_mult, ff_in, space (InsertionPoint).
    Backbones: our UNet and Decoder, diffusers' UNet2DConditionModel. The backbone's keys stay as they were.
    """
    layers = TemporalLayers(backbone, conv, attention, alpha, per, options)
    return layers.to(next(backbone.parameters()).device)


def extend(layers, backbone, **options):
    """The same layers with room for more (context_channels, regimes), which starts at zero and changes nothing.

    The old ones are taken off the backbone. -> TemporalLayers.
    """
    layers.remove()
    old = layers.settings
    conv, attention = ((*layers.classes, None, None)[:2] if old["conv"] else (None, *layers.classes))
    grown = insert(backbone, conv, attention, old["alpha"], old["per"], **(old["options"] | options))
    return load_into(grown, grown.state_dict() | layers.state_dict())


def band(frames, reach):
    """The attention mask of a film longer than those of training: frame i looks at j if |i - j| <= reach. (t, t) bool.

    Paper, appendix D: to a distance of 8 frames, "similar to training", which was on 8. MINI: so the reach is 7 there.
    """
    at = torch.arange(frames)
    return (at[:, None] - at).abs() <= reach


def temporal_parameters(layers):
    """What temporal training trains: every parameter of phi, the alphas included, and nothing else."""
    return list(layers.parameters())


class VideoModel(nn.Module):
    """f_theta,phi: an image backbone and its temporal layers as one network over clips (paper, section 3.1).

    forward(z, tau, **cond): z (b t c h w), tau (b,), one for all frames of a clip -> prediction (b t c h w).
    Each cond goes to the backbone, the same for all frames of a clip: (b, ...) -> ((b t), ...); where it is a clip
    itself, (b t c h w), each frame gets its own.
    """

    def __init__(self, backbone, layers):
        super().__init__()
        self.backbone, self.layers = backbone, layers

    def forward(self, z, tau=None, *, image=False, text=None, positions=None, mask=None, context=None, regime=None,
                state=None, alpha=None, **cond):
        if z.ndim != 5:
            raise ValueError(f"a video model takes clips (b, t, c, h, w), got {tuple(z.shape)}")
        b, t = z.shape[:2]

        def fold(x):
            if not torch.is_tensor(x):
                return x
            return x.flatten(0, 1) if x.ndim == 5 else repeat(x, "b ... -> (b t) ...", t=t)
        text = cond.get("encoder_hidden_states") if text is None else text
        clip = Clip(t, positions, None, text, context, regime, mask, image, alpha, state)
        self.layers.accept(clip)
        args = () if tau is None else (fold(tau.expand(b)),)
        with self.layers.watching(clip):
            # contiguous: in the memory layout of frames of video a backward pass crashes (torch 2.13, CPU)
            z = rearrange(z, "b t c h w -> (b t) c h w").contiguous()
            y = self.backbone(z, *args, **{k: fold(x) for k, x in cond.items()})
        return rearrange(getattr(y, "sample", y), "(b t) c h w -> b t c h w", t=t)
