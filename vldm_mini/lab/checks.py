"""Checks of what a temporal layer computes: identity, mix, image mode, frames, clips, lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vldm_mini.layer_classes import LayerClass
from vldm_mini.temporal import Clip, TemporalLayers, TemporalMix, VideoModel
from vldm_mini.training.sizes import SIZES
from vldm_mini.unet import UNet

from .bench import BATCH, FRAMES, LENGTHS, TOKENS, Bench, Result, crash
from .report import FAIL, NOTE, OK

# --------------------------------------------------------------------------------------------------
# The checks. Each: Bench -> (result, what was seen, what to do), or None where it does not apply.

@torch.no_grad()
def runs(bench: Bench) -> Result:
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
def real_points(bench: Bench) -> Result:
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
def identity(bench: Bench) -> Result:
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
def alpha_one(bench: Bench) -> Result:
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
def image_mode(bench: Bench) -> Result:
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


def frames(bench: Bench) -> Result:
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
def mask(bench: Bench) -> Result:
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
def context(bench: Bench) -> Result | None:
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
def regimes(bench: Bench) -> Result | None:
    z, clip = bench.clip()
    if clip.regime is None:
        return None
    layer = bench.layer(fresh=False)
    layer(z, replace(clip, regime=None))
    if torch.equal(layer(z, clip), layer(z, replace(clip, regime=clip.regime.flip(0)))):
        return NOTE, "clip.regime is ignored", "interpolation at two rates needs it in some layer"
    return OK, "", ""


@torch.no_grad()
def clips(bench: Bench) -> Result:
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
def other_t(bench: Bench) -> Result:
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
