"""`check(MyLayer)`: the conformance test of a temporal layer, in seconds.

It looks for the mistakes that are found in public code. Chapters 04 and 15 walk through it.

    from vldm_mini import lab
    print(lab.check(MyLayer))     # a class, functools.partial, or dict(layer=MyLayer, key=value)

The layer is built small and fresh, called with random clips, trained for two steps, and inserted
into a small U-Net.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vldm_mini.layer_classes import LayerClass
from vldm_mini.temporal import Clip, InsertionPoint, TemporalLayers, TemporalMix, VideoModel
from vldm_mini.training.sizes import SIZES
from vldm_mini.unet import UNet

from .report import FAIL, NOTE, OK, Finding, Report

BATCH, FRAMES, SIZE, TOKENS = 2, 6, 3, 5
PACKAGE = Path(__file__).resolve().parents[1]
LENGTHS = (1, 3, 13, 40)              # frames to try beside FRAMES: tables often have 24 or 32 rows
Result = tuple[str, str, str]         # ok, FAIL or note; what was seen; what to do


# --------------------------------------------------------------------------------------------------
# Small layers and random clips.

class Bench:
    """Builds what the checks try: fresh layers, layers with random weights, clips. The same seed
    gives the same."""

    def __init__(self, make: LayerClass, mix: Any, point: InsertionPoint, seed: int) -> None:
        self.make, self.mix, self.point = make, mix, point
        self.rng = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def layer(self, fresh: bool = True) -> nn.Module:
        """A layer at its start, or (fresh=False) with noise on every weight, as if trained."""
        layer = self.make(self.point).eval()
        return layer if fresh else self.shaken(layer)

    @torch.no_grad()
    def shaken(self, module: nn.Module) -> nn.Module:
        """Noise added to every parameter, in place."""
        for p in module.parameters():
            p += 0.2 * self.randn(*p.shape)
        return module

    def clip(self, t: int = FRAMES, b: int = BATCH, size: int = SIZE) -> tuple[Tensor, Clip]:
        """Random z (b c t h w) and its Clip, with all that the insertion point offers.

        The embedding of tau is the same for all frames, as in a real run.
        """
        point = self.point
        more = {"emb": self.randn(b, 1, point.emb_channels).expand(b, t, -1)}
        if point.text_channels:
            more["text"] = self.randn(b, TOKENS, point.text_channels)
        if point.context_channels:
            more["context"] = self.randn(b, point.context_channels, t, size, size)
        if point.regimes:
            more["regime"] = torch.arange(b) % point.regimes
        return self.randn(b, point.channels, t, size, size), Clip(t, **more)


def check(make: Any, mix: Any = TemporalMix, *, channels: int = 64, heads: int = 2,
          emb_channels: int = 24, text_channels: int | None = None, kind: str = "attention",
          seed: int = 0, **options: Any) -> Report:
    """Is this a temporal layer? -> Report; print it.

    make: as for `insert`: a class, functools.partial, or dict(layer=..., key=value), built as
    make(point). mix: the module around it, built as mix(layer, point) or mix(layer, point,
    alpha=0.62). kind: "conv" or "attention", the insertion points that it is meant for. The other
    arguments set the InsertionPoint; with text_channels, context_channels or regimes the clips
    carry them. Raises TypeError, ValueError for what `insert` does not take either.
    """
    layer_class = LayerClass.of(make)
    point = InsertionPoint("lab", kind, channels, emb_channels, text_channels, heads=heads,
                           **options)
    start, findings = time.perf_counter(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, means, look in CHECKS:
            try:
                result = look(Bench(layer_class, mix, point, seed))
            except Exception as error:      # a reader's layer may raise anything
                result = FAIL, crash(error), CRASH
            if result is not None:
                status, seen, todo = result
                findings.append(Finding(name, status, means, seen, todo))
            if look is _runs and findings[0].result == FAIL:
                break
        parameters = 0
        if findings[0].result == OK:
            parameters = sum(p.numel() for p in layer_class(point).parameters())
    return Report(layer_class.name, tuple(findings), parameters, time.perf_counter() - start)


CRASH = "it raised this error at that line"


def crash(error: Exception) -> str:
    """The error and the line of the reader's code that raised it: "file.py:12: ValueError: ..."."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts]
    readers = [frame for frame in outside if PACKAGE not in Path(frame.filename).parents]
    last = (readers or outside or frames)[-1]
    text = (str(error).splitlines() or [""])[0][:120]
    return f"{Path(last.filename).name}:{last.lineno}: {type(error).__name__}: {text}"


# --------------------------------------------------------------------------------------------------
# The checks. Each: Bench -> (result, what was seen, what to do), or None where it does not apply.

@torch.no_grad()
def _runs(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer, before = bench.layer(fresh=False), z.clone()
    out = layer(z, clip)
    if out.shape != z.shape:
        return FAIL, f"{tuple(z.shape)} in, {tuple(out.shape)} out", \
            "return the shape that came in: b c t h w"
    if not torch.equal(z, before):
        return FAIL, "z was changed in place", \
            "write z = z + ..., not z += ...: the mix still needs the old z"
    if not torch.equal(layer(z, clip), out):
        return FAIL, *_why_not_repeatable(layer, z, clip)
    return OK, "", ""


def _why_not_repeatable(layer: nn.Module, z: Tensor, clip: Clip) -> tuple[str, str]:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(layer(z, clip))
    if torch.equal(*results):
        return "the second call gave another result: random numbers in evaluation mode", \
            "use nn.Dropout, or F.dropout(x, p, training=self.training)"
    return "the second call gave another result", \
        "keep nothing between calls (clip.state is for that)"


@torch.no_grad()
def _real_points(bench: Bench) -> Result:
    """Both kinds of insertion points of a U-Net; only those of the layer's own kind may fail it."""
    problems = {}
    for kind in ("conv", "attention"):
        try:
            problem = _run_in_unet(bench, kind)
        except Exception as error:      # a reader's layer may raise anything
            problem = crash(error)
        if problem:
            problems[kind] = problem
    own = bench.point.kind
    if own in problems:
        return FAIL, f"with {own}=: {problems[own]}", \
            "use the fields of the InsertionPoint (channels, heads, groups, emb_channels), not " \
            "numbers of one size; clip.emb is there after the first residual block"
    for kind, problem in problems.items():
        return NOTE, f"with {kind}=: {problem}", f"fine, if you only insert it with {own}=..."
    return OK, "", ""


def _run_in_unet(bench: Bench, kind: str) -> str | None:
    """The layer at all insertion points of a kind in the U-Net of size xs -> what went wrong."""
    point = bench.point
    unet = bench.shaken(UNet(SIZES["xs"].unet)).eval()
    options = dict(text_channels=point.text_channels, context_channels=point.context_channels,
                   regimes=point.regimes)
    classes = {"conv": None, "attention": None, "mix": LayerClass.of(TemporalMix),
               kind: bench.make}
    model = VideoModel(unet, TemporalLayers(unet, classes, options=options)).eval()
    b, t, c, size = BATCH, 4, unet.config.in_channels, 4
    z, more = bench.randn(b, t, c, size, size), {}
    if point.text_channels:
        more["text"] = bench.randn(b, TOKENS, point.text_channels)
    if point.context_channels:
        more["context"] = bench.randn(b, point.context_channels, t, size, size)
    if point.regimes:
        more["regime"] = torch.arange(b) % point.regimes
    for make_weights in (lambda layers: layers, bench.shaken):
        make_weights(model.layers)
        out = model(z, torch.tensor([100, 700]), **more)
        if out.shape != z.shape:
            return f"{tuple(z.shape)} in, {tuple(out.shape)} out"
        if not out.isfinite().all():
            return "values that are not finite"
    return None


@torch.no_grad()
def _identity(bench: Bench) -> Result:
    z, clip = bench.clip()
    out = bench.layer()(z, clip)
    if torch.equal(out, z):
        return OK, "", ""
    error = float((out - z).abs().max())
    late = (out[:, :, 1:] == z[:, :, :-1]).flatten(2).all(-1).all(0)
    late &= ~(out == z).flatten(2).all(-1).all(0)
    if late.all():
        return FAIL, "the layer is a delay: each frame comes out one frame late", \
            "a causal kernel's identity is its last tap, not its middle one; or zero the kernel " \
            "and add it to z"
    if late.any():
        return FAIL, f"{int(late.sum())} of {len(late)} channels come out one frame late: a " \
            "token shift on the skip", \
            "shift only inside the branch, return z + branch, and zero the branch's last projection"
    if error < 1e-5:
        return FAIL, f"off by rounding, {error:.0e}: a mix written alpha * z + (1 - alpha) * z_t", \
            "write z + (1 - alpha) * (z_t - z), or leave the mix to TemporalMix"
    return FAIL, f"a fresh layer changes z by up to {error:.2g}", \
        "zero-initialise the last projection of every branch (temporal.zero_init) and add it to z"


@torch.no_grad()
def _alpha_one(bench: Bench) -> Result:
    z, clip = bench.clip()
    mix = bench.mix(bench.layer(fresh=False), bench.point)
    mix.fixed_alpha = 1.0
    off = (mix(z, clip) != z).float().mean()
    mix.fixed_alpha = None
    fresh = bench.mix(bench.layer(), bench.point, alpha=0.62)
    fresh_off = (fresh(z, clip) != z).float().mean()
    if off:
        return FAIL, f"at alpha = 1, {off:.0%} of the values differ from z", \
            "alpha = 1 has to return z exactly"
    if fresh_off and torch.equal(bench.layer()(z, clip), z):
        return FAIL, f"where z_t = z, {fresh_off:.0%} of the mixed values differ from z", \
            "alpha * z + (1 - alpha) * z_t rounds; write z + (1 - alpha) * (z_t - z)"
    return OK, "", ""


@torch.no_grad()
def _image_mode(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer = bench.layer()
    for p in layer.parameters():
        p.fill_(float("nan"))
    if not torch.equal(bench.mix(layer, bench.point)(z, replace(clip, image=True)), z):
        return FAIL, "with clip.image the layer still changes the result", \
            "skip the layer in image mode; do not multiply it by zero (0 times NaN is NaN)"
    return OK, "", ""


@torch.no_grad()
def reach(layer: Callable[[Tensor, Clip], Tensor], z: Tensor, clip: Clip) -> Tensor:
    """(t, t) bool: [i, j] is True where output frame i depends on input frame j."""
    before, columns = layer(z, clip), []
    for j in range(clip.frames):
        other = z.clone()
        other[:, :, j] = other[:, :, j].flip(0) + 1.0
        columns.append((layer(other, clip) - before).abs().amax((0, 1, 3, 4)) > 1e-6)
    return torch.stack(columns, dim=1)


def _frames(bench: Bench) -> Result:
    z, clip = bench.clip()
    own = torch.eye(clip.frames, dtype=torch.bool)
    layer = bench.layer(fresh=False)
    others = reach(layer, z, clip) & ~own
    if not others.any():
        why = "they attend to the text only" if clip.text is not None else "each frame is alone"
        return FAIL, f"no frame changes when another one does: {why}", \
            "queries, keys and values all come from the frames (text has an attention of its own)"
    if _wraps(others) and _wraps(reach(layer, *bench.clip(FRAMES + 1)).fill_diagonal_(False)):
        return FAIL, "the first and the last frame depend on one another and not on those " \
            "between: time wraps around", \
            "torch.roll is circular: pad with zeros or with the end frames, and slice"
    if not others.triu().any() or not others.tril().any():
        return NOTE, "causal: frames depend on one side of time only", \
            "intended? rollouts depend on it"
    if not (others | own).all():
        return NOTE, f"a frame depends on {int(others.sum(1).max())} of the {clip.frames - 1} " \
            "others", "fine for a convolution; far frames meet through several layers or attention"
    return OK, "", ""


def _wraps(others: Tensor) -> bool:
    """Whether an end frame depends on the other end and not on its second neighbour."""
    return bool((others[0, -1] and not others[0, 2:-1].all())
                or (others[-1, 0] and not others[-1, 1:-2].all()))


@torch.no_grad()
def _mask(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer = bench.layer(fresh=False)
    half = torch.arange(clip.frames) < clip.frames // 2
    seen = reach(layer, z, replace(clip, mask=half[:, None] == half))
    if seen[half][:, ~half].any() or seen[~half][:, half].any():
        return NOTE, "clip.mask is ignored", \
            "fine for a short kernel; attention passes it on (mask=clip.mask): videos longer " \
            "than in training rely on it"
    return OK, "", ""


@torch.no_grad()
def _context(bench: Bench) -> Result | None:
    z, clip = bench.clip()
    if clip.context is None:
        return None
    layer = bench.layer(fresh=False)
    without = layer(z, replace(clip, context=None))
    empty = layer(z, replace(clip, context=torch.zeros_like(clip.context)))
    if not torch.equal(without, empty):
        return FAIL, "a c_S of zeros and no c_S give different results", \
            "no bias in the convolution of c_S, and add it to z: 'nothing given' is then zero"
    if torch.equal(layer(z, clip), without):
        return NOTE, "clip.context is ignored", "c_S enters the conv layers in the paper"
    return OK, "", ""


@torch.no_grad()
def _regimes(bench: Bench) -> Result | None:
    z, clip = bench.clip()
    if clip.regime is None:
        return None
    layer = bench.layer(fresh=False)
    layer(z, replace(clip, regime=None))
    if torch.equal(layer(z, clip), layer(z, replace(clip, regime=clip.regime.flip(0)))):
        return NOTE, "clip.regime is ignored", "interpolation at two rates needs it in some layer"
    return OK, "", ""


@torch.no_grad()
def _clips(bench: Bench) -> Result:
    layer = bench.layer(fresh=False)
    norms = [name for name, m in layer.named_modules() if isinstance(m, _BatchNorm)]
    if norms:
        return FAIL, f"{', '.join(norms)}: statistics over the batch mix clips in training", \
            "use nn.GroupNorm, nn.LayerNorm or blocks.ChannelLayerNorm"
    (z, clip), (other, clip2) = bench.clip(), bench.clip()

    def first_of(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None else torch.cat([a[:1], b[1:]])

    mixed = replace(clip, emb=first_of(clip.emb, clip2.emb), text=first_of(clip.text, clip2.text),
                    context=first_of(clip.context, clip2.context))
    change = float((layer(first_of(z, other), mixed)[0] - layer(z, clip)[0]).abs().max())
    if change > 1e-5:
        return FAIL, f"clip 0 changes by {change:.2g} when clip 1 is replaced", \
            "fold and unfold with named axes, 'b c t h w -> (b h w) t c' and back"
    return OK, "", ""


@torch.no_grad()
def _other_t(bench: Bench) -> Result:
    layer = bench.layer(fresh=False)
    for t in LENGTHS:
        z, clip = bench.clip(t, size=2)
        try:
            fine = layer(z, clip).isfinite().all()
        except Exception as error:      # a reader's layer may raise anything
            return FAIL, f"T = {t}: {crash(error)}", \
                "make positions a function of the index (blocks.sinusoidal_embedding), not a " \
                "table with an end"
        if not fine:
            return FAIL, f"T = {t} gives values that are not finite", \
                "divide by T only where T = 1 is safe"
    return OK, "", ""


@torch.no_grad()
def _order(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer = bench.layer(fresh=False)
    if torch.allclose(layer(z.flip(2), clip), layer(z, clip).flip(2), atol=1e-5):
        return NOTE, "the clip run backwards gives the result run backwards", \
            "add a position to each frame"
    return OK, "", ""


def _gradient(bench: Bench) -> Result:
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
def _low_precision(bench: Bench) -> Result:
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


def _memory(bench: Bench) -> Result:
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
def _round_trip(bench: Bench) -> Result:
    z, clip = bench.clip()
    layer, other = bench.layer(fresh=False), bench.layer(fresh=False)
    tensors = {name: x.contiguous() for name, x in layer.state_dict().items()}
    missing = other.load_state_dict(load(save(tensors)))
    if missing.missing_keys or not torch.equal(layer(z, clip), other(z, clip)):
        return FAIL, "saved and loaded again, it gives another result", \
            "hold every tensor as a Parameter or with register_buffer, so that it is in state_dict"
    return OK, "", ""


@torch.no_grad()
def _pooling(bench: Bench) -> Result:
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


CHECKS = (
    ("runs", "b c t h w in and out, z left alone, the same result twice", _runs),
    ("real insertion points", "it runs at all insertion points of a U-Net", _real_points),
    ("identity at start", "a fresh layer returns z exactly: the video model starts as the image "
     "model", _identity),
    ("exact mix", "alpha = 1, and a branch that adds nothing, return z exactly", _alpha_one),
    ("image mode", "with clip.image the layer is not even called", _image_mode),
    ("frames see one another", "change one frame and others change: else there is no video",
     _frames),
    ("mask", "frames that clip.mask hides have no effect", _mask),
    ("context", "c_S of zeros is no context", _context),
    ("regimes", "it runs with and without clip.regime", _regimes),
    ("clips do not mix", "a clip's result does not depend on its neighbour in the batch", _clips),
    ("other T", f"runs at T = {', '.join(map(str, LENGTHS))}, not only as trained", _other_t),
    ("order of frames", "forwards and backwards differ", _order),
    ("gradient", "every weight gets a gradient within two steps, some matrix at the first",
     _gradient),
    ("low precision", "bf16 stays close to fp32, nothing exceeds the range of fp16",
     _low_precision),
    ("memory against T", "what is kept for the backward pass grows with T, not with T squared",
     _memory),
    ("state_dict", "saved and loaded into a new layer: the same result", _round_trip),
    ("norms over time", "statistics are each frame's own", _pooling),
)
