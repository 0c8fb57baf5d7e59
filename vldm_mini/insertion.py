"""Inserting temporal layers into an image backbone: where they go, and how they find their clip.

Paper: section 3.1, Fig. 4 (left): each temporal layer follows a spatial layer of the backbone. The
layers themselves, the mix and `insert` stand in `temporal`. Chapter 04 walks through both.

The backbone keeps its modules and its keys: temporal layers are called by forward hooks. What a
hook has to know of the running forward pass (the clip, image mode, a fixed alpha) belongs to that
pass and not to the module. Two threads that call one model at the same time do not disturb one
another, and gradient checkpointing recomputes with the clip of the pass that it recomputes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .blocks import ResBlock, SpatialAttention
from .layer_classes import LayerClass, fingerprint, saved_class
from .weights import (
    CARD,
    CONFIG,
    WEIGHTS,
    load_into,
    load_tensors,
    packed,
    read_json,
    save_tensors,
    write_text,
)


@dataclass(frozen=True)
class Clip:
    """What a temporal layer may use beside z. A new need is a new field; no signature changes."""

    frames: int                          # T
    positions: Tensor | None = None      # (t,) of each frame in the window; None: 0, 1, 2, ...
    emb: Tensor | None = None            # (b, t, e) the backbone's embedding of tau (and labels)
    text: Tensor | None = None           # (b, l, d) text tokens, one prompt a clip
    context: Tensor | None = None        # (b, c + 1, t, h, w) c_S (paper, section 3.2)
    regime: Tensor | None = None         # (b,) long: which of several regimes (paper, section 3.3)
    mask: Tensor | None = None           # (t, t) bool, True where frame i attends to frame j
    image: bool = False                  # image mode: temporal layers are skipped
    alpha: float | None = None           # one fixed mix in [0, 1] for this call; None: as learned
    state: Any = None                    # whatever a layer keeps from one window to the next


@dataclass(frozen=True)
class InsertionPoint:
    """Where a temporal layer goes, and what its widths must be."""

    name: str                            # of the spatial layer that it follows
    kind: str                            # of that layer: "conv" (a residual block), "attention",
    # or "transformer": a whole spatial transformer of diffusers, attention, text and projections
    channels: int
    emb_channels: int | None = None      # width of clip.emb; None if the backbone has no embedding
    text_channels: int | None = None     # width of clip.text; None: no text
    context_channels: int | None = None  # channels of clip.context, c + 1; None: no c_S
    regimes: int = 0                     # number of regimes; 0: none
    heads: int = 1
    groups: int = 32                     # of group norms; 0: norms over channels, as the backbone's
    ff_mult: int = 4
    ff_in: bool = True
    space: int = 1                       # width in space of convolutions over time: 1, 3, ...


OPTIONS = ("text_channels", "context_channels", "regimes", "ff_mult", "ff_in", "space")
# what wrappers put before the names of a backbone's modules: peft, torch.compile, DDP
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")


def insertion_points(backbone: nn.Module, **options: Any) -> list[tuple[nn.Module, InsertionPoint]]:
    """The spatial layers of a backbone that temporal ones can follow, in the order of the network.

    Backbones: our UNet and Decoder, diffusers' UNet2DConditionModel and decoders. options: see
    OPTIONS. Raises ValueError for an unknown option, and for a backbone without such layers.
    """
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise ValueError(f"temporal layers have no option {', '.join(unknown)}; "
                         f"there are {', '.join(OPTIONS)}")
    found = []
    for name, module in backbone.named_modules():
        facts = _spatial_layer(module)
        if facts is not None:
            found.append((module, InsertionPoint(_bare(name), **facts, **options)))
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no spatial layer that temporal layers "
                         "could follow")
    # all residual blocks take the same embedding, and temporal attention layers may use it as well
    width = next((point.emb_channels for _, point in found if point.kind == "conv"), None)
    return [(module, replace(point, emb_channels=width)) for module, point in found]


def _spatial_layer(module: nn.Module) -> dict[str, Any] | None:
    """Fields of the InsertionPoint after a module; None where temporal layers do not go."""
    # diffusers' classes are recognised by name: the core does not import diffusers
    kind = type(module).__name__
    if isinstance(module, ResBlock):
        return dict(kind="conv", channels=module.c_out, emb_channels=module.emb_channels,
                    groups=getattr(module.norm2, "num_groups", 0))
    if isinstance(module, SpatialAttention):
        return dict(kind="attention", channels=module.channels, heads=module.heads)
    if kind == "ResnetBlock2D":
        has_emb = module.time_emb_proj is not None
        return dict(kind="conv", channels=module.out_channels, groups=module.norm2.num_groups,
                    emb_channels=module.time_emb_proj.in_features if has_emb else None)
    if kind == "BasicTransformerBlock":
        return dict(kind="attention", channels=module.dim, heads=module.attn1.heads)
    if kind == "Transformer2DModel":
        heads = module.transformer_blocks[0].attn1.heads
        return dict(kind="transformer", channels=module.out_channels, heads=heads)
    return None


def _bare(name: str) -> str:
    """The name of a module without what wrappers of the backbone put before it."""
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            return _bare(name.removeprefix(wrapper))
    return name


def chosen(points: list[InsertionPoint],
           where: Callable[[InsertionPoint], bool] | Iterable[str] | None) -> list[str]:
    """Names of the insertion points that `where` selects. Raises ValueError for unknown names."""
    names = [point.name for point in points]
    if where is None:
        return names
    if callable(where):
        return [point.name for point in points if where(point)]
    wanted = {where} if isinstance(where, str) else set(where)
    unknown = sorted(wanted - set(names))
    if unknown:
        raise ValueError(f"no insertion point is called {', '.join(unknown)}; "
                         f"there are {', '.join(names)}")
    return [name for name in names if name in wanted]


# --------------------------------------------------------------------------------------------------
# The running forward pass, and the hooks that take part in it.

class Call:
    """One forward pass of a VideoModel: which layers take part in it, and for which clip."""

    def __init__(self, layers: TemporalLayers, clip: Clip) -> None:
        self.layers, self.clip = layers, clip


# of this thread (and of this asynchronous task)
_running: ContextVar[Call | None] = ContextVar("running call of a VideoModel", default=None)
_MARK = "_vldm_mini_call"                # attribute of tensors: the Call that they were used in


def _find_call(inputs: list[Tensor]) -> Call | None:
    """The Call that a spatial layer with these inputs runs in; None: the image model runs alone.

    Gradient checkpointing runs spatial layers once more during the backward pass, when no forward
    pass is running, perhaps in another thread, and gives them the very tensors of the first time.
    Each forward pass therefore marks these tensors with its Call (`_mark`).
    """
    call = _running.get()
    if call is None and not torch.compiler.is_compiling() and _in_backward():
        marked = [x for x in inputs if hasattr(x, _MARK)]
        if not marked:
            raise RuntimeError(
                "a spatial layer with temporal layers behind it is recomputed in a backward pass, "
                "and it is not known for which clip: use use_reentrant=False, and checkpoint "
                "whole blocks of the backbone, or the VideoModel as a whole")
        call = getattr(marked[0], _MARK)
    return call


def _in_backward() -> bool:
    """Whether this thread is at work on a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _mark(tensors: list[Tensor], call: Call | None) -> None:
    """Note on the inputs and the output of a spatial layer which Call they belong to."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        for x in tensors:
            setattr(x, _MARK, call)


class TemporalHook:
    """Forward hook of one spatial layer: applies the mix that follows it.

    mix: None only notes the embedding of tau for the layers that come later. An object rather than
    a closure: a deep copy of backbone and layers then refers to the copied layers.
    """

    def __init__(self, layers: TemporalLayers, point: InsertionPoint, mix: nn.Module | None):
        self.layers, self.point, self.mix = layers, point, mix

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, z: Tensor | tuple) -> Any:
        if isinstance(z, tuple):                              # a spatial transformer of diffusers
            return (self(module, args, kwargs, z[0]), *z[1:])
        inputs = [x for x in (*args, *kwargs.values()) if torch.is_tensor(x)]
        call = _find_call(inputs)
        if call is not None and call.layers is self.layers and not call.clip.image:
            z = self.follow(z, args, kwargs, call)
        _mark([*inputs, z], call)
        return z

    def follow(self, z: Tensor, args: tuple, kwargs: dict, call: Call) -> Tensor:
        """Output z of the spatial layer, (b t) c h w or (b t) n c -> the mix, of the same shape."""
        t = call.clip.frames
        if self.point.kind == "conv":
            emb = args[1] if len(args) > 1 else kwargs.get("temb", kwargs.get("emb"))
            if emb is not None:
                # a copy: the tensor itself is marked with this call, which must not refer to it
                emb = rearrange(emb, "(b t) e -> b t e", t=t).clone()
                call.clip = replace(call.clip, emb=emb)
        if self.mix is None:
            return z
        if z.ndim == 4:
            out = self.mix(rearrange(z, "(b t) c h w -> b c t h w", t=t), call.clip)
            out = rearrange(out, "b c t h w -> (b t) c h w")
        else:                                                             # tokens of diffusers
            out = self.mix(rearrange(z, "(b t) n c -> b c t n 1", t=t), call.clip)
            out = rearrange(out, "b c t n 1 -> (b t) n c")
        # in z's memory layout: another one means other kernels, and results that differ by rounding
        return out if out.stride() == z.stride() else torch.empty_like(z).copy_(out)


class TemporalLayers(nn.Module):
    """The temporal layers of one backbone, named after the spatial layers that they follow.

    `insert` builds it. mixes: {name, with "-" for ".": mix}. settings: what config.json holds.
    """

    def __init__(self, backbone: nn.Module, classes: dict[str, LayerClass | None],
                 where: Callable[[InsertionPoint], bool] | Iterable[str] | None = None,
                 per: str | int = "scalar", alpha: float = 0.5,
                 options: dict[str, Any] | None = None) -> None:
        super().__init__()
        options = dict(options or {})
        found = insertion_points(backbone, **options)
        names = set(chosen([point for _, point in found], where))
        self.classes = classes       # {"conv", "attention", "mix" and, if given, "transformer"}
        self.mixes, self.hooks = nn.ModuleDict(), []
        for module, point in found:
            make, mix = self.classes.get(point.kind), None
            if make is not None and point.name in names:
                layer = _module(make(point), make)
                mix = _module(self.classes["mix"](layer, point, alpha, per), self.classes["mix"])
                self.mixes[point.name.replace(".", "-")] = mix
            if mix is not None or point.kind == "conv":
                hook = TemporalHook(self, point, mix)
                self.hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        if not self.mixes:
            self.remove()
            raise ValueError("no temporal layer was inserted: conv, attention and where leave none "
                             f"of the {len(found)} insertion points")
        self.settings = {
            **{kind: layer.path if layer else None for kind, layer in classes.items()},
            "hyperparameters": {kind: layer.hyperparameters for kind, layer in classes.items()
                                if layer and layer.hyperparameters},
            "where": None if where is None else [point.name for _, point in found
                                                 if point.name in names],
            "alpha": alpha, "per": per, "options": options}

    @contextmanager
    def running(self, clip: Clip) -> Iterator[None]:
        """Inside, in this thread, the backbone is the video model of this clip; outside, and in
        other threads, it is the image model."""
        token = _running.set(Call(self, clip))
        try:
            yield
        finally:
            _running.reset(token)

    def hang_on(self, backbone: nn.Module) -> bool:
        """Whether these layers are inserted into this very backbone."""
        hooks = [hook for module in backbone.modules() for hook in module._forward_hooks.values()]
        return any(isinstance(hook, TemporalHook) and hook.layers is self for hook in hooks)

    def accept(self, clip: Clip, b: int) -> None:
        """Raises ValueError for a clip with what these layers do not take, or of a wrong shape."""
        options, t = self.settings["options"], clip.frames
        for name, option in (("context", "context_channels"), ("regime", "regimes")):
            if getattr(clip, name) is not None and not options.get(option):
                raise ValueError(f"these temporal layers take no {name}: insert them with "
                                 f"{option}=...")
        shapes = {"positions": (t,), "mask": (t, t), "regime": (b,)}
        shapes["text"] = (b, "l", options.get("text_channels") or "d")
        shapes["context"] = (b, options.get("context_channels"), t, "h", "w")
        for name, shape in shapes.items():
            value = getattr(clip, name)
            if value is not None and not _fits(value, shape):
                raise ValueError(f"{name} must be ({', '.join(map(str, shape))}), "
                                 f"got {tuple(value.shape)}")
        if clip.mask is not None and clip.mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True where frame i attends to frame j, "
                             f"got {clip.mask.dtype}")
        # only on the CPU: elsewhere the processor would have to wait for the device
        if clip.regime is not None and clip.regime.device.type == "cpu":
            if clip.regime.min() < 0 or clip.regime.max() >= options["regimes"]:
                raise ValueError(f"regime lies in 0..{options['regimes'] - 1}, "
                                 f"got {clip.regime.tolist()}")

    def alphas(self) -> dict[str, float]:
        """{name of the spatial layer: alpha, the mean if there are several}, in network order."""
        return {name: float(mix.alpha.detach().mean()) for name, mix in self.mixes.items()}

    def set_alpha(self, alpha: float | None = None) -> None:
        """Fix alpha everywhere to a number in [0, 1], or go back to the learned ones with None.

        For one call alone, give `alpha` to that call of the VideoModel.
        """
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies in [0, 1], got {alpha}")
        for mix in self.mixes.values():
            mix.fixed_alpha = alpha

    def remove(self) -> None:
        """Take the layers off the backbone again."""
        for hook in self.hooks:
            hook.remove()

    def source_hash(self) -> str:
        """sha256 of everything that says what fresh layers compute: the code of the classes and of
        what it uses of their files, without comments, hyperparameters and settings."""
        return fingerprint([layer for layer in self.classes.values() if layer], self.settings)

    def save_pretrained(self, folder: str | Path, card: str = "",
                        dtype: torch.dtype = torch.float16) -> None:
        """Weights (see weights.packed), settings, card, and the source of a reader's own layers."""
        folder = Path(folder)
        save_tensors(folder / WEIGHTS, packed(self.state_dict(), dtype))
        write_text(folder / CONFIG, json.dumps(self.settings, indent=1) + "\n")
        for layer in self.classes.values():
            for name, text in (layer.sources() if layer else {}).items():
                write_text(folder / f"{name}.py.txt", text)
        if card:
            write_text(folder / CARD, card)

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: nn.Module, conv: Any = None,
                        attention: Any = None, mix: Any = None,
                        transformer: Any = None) -> TemporalLayers:
        """Put the layers saved in `folder` into `backbone`, in evaluation mode.

        conv, attention, mix, transformer: a reader's own classes; those of this package are found
        without. Their hyperparameters come from the folder. Raises FileNotFoundError, ValueError.
        """
        given = {"conv": conv, "attention": attention, "mix": mix}
        keys = (*given, "hyperparameters", "where", "alpha", "per", "options")
        path = Path(folder) / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"no temporal layers at {folder}; give the folder that "
                                    "save_pretrained wrote")
        settings = read_json(path, keys)
        if "transformer" in settings:
            given["transformer"] = transformer
        classes = {kind: saved_class(kind, given[kind], settings, folder) for kind in given}
        layers = cls(backbone, classes, settings["where"], settings["per"], settings["alpha"],
                     settings["options"])
        like_backbone(layers, backbone)
        return load_into(layers, load_tensors(Path(folder) / WEIGHTS), str(folder)).eval()


def like_backbone(layers: nn.Module, backbone: nn.Module) -> nn.Module:
    """Moved to the device and the number format of a backbone, in place. -> layers."""
    like = next(p for p in backbone.parameters() if p.is_floating_point())
    return layers.to(like.device, like.dtype)


def saved_names(folder: str | Path) -> dict[str, str | None]:
    """{"conv", "attention", "mix": name of the class} of the temporal layers saved in a folder."""
    settings = read_json(Path(folder) / CONFIG)
    return {kind: settings[kind].rpartition(".")[2] if settings.get(kind) else None
            for kind in ("conv", "attention", "mix")}


def _module(made: Any, make: LayerClass) -> nn.Module:
    """What a class built, if it is a module."""
    if not isinstance(made, nn.Module):
        raise TypeError(f"{make.name} gave a {type(made).__name__}, not an nn.Module; to leave out "
                        "an insertion point, select the others with where=")
    return made


def _fits(value: Tensor, shape: tuple) -> bool:
    """Whether a tensor has this shape; letters stand for any length."""
    return value.ndim == len(shape) and all(
        isinstance(n, str) or n == size for n, size in zip(shape, value.shape))
