"""Checks of how a temporal layer trains and is kept: order, gradients, formats, memory, files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vldm_mini.temporal import Clip

from .bench import Bench, Result
from .report import FAIL, NOTE, OK

# Each: Bench -> (result, what was seen, what to do), or None where it does not apply.

@torch.no_grad()
def order(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer = bench.layer(fresh=False)
    if torch.allclose(layer(z.flip(2), clip), layer(z, clip).flip(2), atol=1e-5):
        return NOTE, "the clip run backwards gives the result run backwards", \
            "add a position to each frame"
    return OK, "", ""


def gradient(bench: Bench) -> Result:
    """Two steps of descent on random targets: a weight without a gradient by then never learns."""
    mix = bench.mix(bench.layer(), bench.point).train()
    named, got = dict(mix.named_parameters()), []
    for _ in range(2):
        z, clip = bench.clip()
        loss = (mix(z, clip) * bench.randn(*z.shape)).mean()
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        got.append({name for name, g in zip(named, grads) if g is not None and g.any()})
        with torch.no_grad():
            for p, g in zip(named.values(), grads):
                if g is not None and g.any():
                    p -= 0.05 * g / g.abs().max()
    dead = [name.removeprefix("layer.") for name in named if name not in got[0] | got[1]]
    matrices = [name for name in named if named[name].ndim > 1]
    if not dead and (not matrices or got[0] & set(matrices)):
        return OK, "", ""
    return FAIL, *_why_dead(named, got[0], dead)


def _why_dead(named: dict[str, Tensor], first: set[str], dead: list[str]) -> tuple[str, str]:
    names = ", ".join(dead[:4]) + (f" and {len(dead) - 4} more" if len(dead) > 4 else "")
    if first and all(named[name].numel() == 1 for name in first):
        return "at the first step only a mixing scalar gets a gradient: (1 - alpha) is 0, alpha " \
            "can stick", "alpha = sigmoid(mix), starting near 0.5, and a zero-initialised end"
    if not any(named[name].ndim > 1 for name in first):
        return "no weight matrix gets a gradient at the first step: zero times zero is dead " \
            f"({names or 'all'})", \
            "zero only the last projection of a branch; q, k and v start at random"
    return f"no gradient in two steps: {names}", \
        "is it used in forward? is something after it zero for good?"


@torch.no_grad()
def low_precision(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer = bench.layer(fresh=False)
    want, peak = layer(z, clip), _peak(layer, z, clip)
    half = {name: getattr(clip, name).bfloat16() for name in ("emb", "text", "context")
            if getattr(clip, name) is not None}
    out = layer.bfloat16()(z.bfloat16(), replace(clip, **half))
    if out.dtype != torch.bfloat16:
        return FAIL, f"bf16 in, {out.dtype} out", \
            "cast what you make inside (positions, masks) with .to(z.dtype)"
    error = float((out.float() - want).norm() / want.norm())
    if not out.isfinite().all() or error > 0.1:
        return FAIL, f"bf16 is off by {error:.0%} of the fp32 result", \
            "keep sums, norms and exponentials in fp32"
    if peak > 6e4:
        return FAIL, f"values reach {peak:.2g}; fp16 ends at 65,504", \
            "normalise before the large product, or scale it"
    return OK, f"bf16 within {error:.1%}, largest value {peak:.2g}", ""


def _peak(layer: nn.Module, z: Tensor, clip: Clip) -> float:
    """The largest number that leaves any module inside, in fp32."""
    peaks = [0.0]

    def note(module: nn.Module, args: tuple, out: Any) -> None:
        if torch.is_tensor(out):
            peaks.append(float(out.abs().max()))

    hooks = [module.register_forward_hook(note) for module in layer.modules()]
    layer(z, clip)
    for hook in hooks:
        hook.remove()
    return max(peak if math.isfinite(peak) else math.inf for peak in peaks)


def memory(bench: Bench) -> Result:
    """Bytes kept for the backward pass at T = 64 and 128, one position of one clip."""
    layer, kept = bench.layer(fresh=False), []
    for t in (64, 128):
        z, clip = bench.clip(t, b=1, size=1)
        try:
            kept.append(_kept_bytes(layer, z.requires_grad_(), clip))
        except Exception:      # a reader's layer may raise anything
            return NOTE, f"not measured: it does not run at T = {t}", "see the check of other T"
    power = math.log2(kept[1] / kept[0])
    seen = f"T to 2T keeps {kept[1] / kept[0]:.2f} times the activations " \
        f"({kept[1] // 1024} KiB at T = 128)"
    if power > 1.3:
        return NOTE, seen + ": grows towards T squared", \
            "attention through scaled_dot_product_attention keeps T only"
    return OK, seen, ""


def _kept_bytes(layer: nn.Module, z: Tensor, clip: Clip) -> int:
    own, kept = {p.untyped_storage().data_ptr() for p in layer.parameters()}, {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = layer(z, clip)                    # held until counted, so that no address is reused
    return sum(kept.values()) if out is not None else 0


@torch.no_grad()
def round_trip(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer, other = bench.layer(fresh=False), bench.layer(fresh=False)
    tensors = {name: x.contiguous() for name, x in layer.state_dict().items()}
    missing = other.load_state_dict(load(save(tensors)))
    if missing.missing_keys or not torch.equal(layer(z, clip), other(z, clip)):
        return FAIL, "saved and loaded again, it gives another result", \
            "hold every tensor as a Parameter or with register_buffer, so that it is in state_dict"
    return OK, "", ""


@torch.no_grad()
def pooling(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer, found = bench.layer(), []

    def noted(name: str) -> Callable:
        def note(module: nn.Module, args: tuple) -> None:
            if args[0].ndim == 5 and args[0].shape[2] > 1:
                found.append(name)
        return note

    for name, module in layer.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.InstanceNorm3d)):
            module.register_forward_pre_hook(noted(name))
    layer(z, clip)
    if found:
        return NOTE, f"{', '.join(found)} take mean and variance over all frames", \
            "SVD does so as well; a chunk of a video then differs from the whole. Else fold t " \
            "into the batch first"
    return OK, "", ""
