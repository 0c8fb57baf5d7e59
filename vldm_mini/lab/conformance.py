"""The prototyper's bench. So far: `check(MyLayer)`, the conformance test of a temporal layer, in ten seconds.

Design, section 2; the mistakes that it looks for are those found in public code. Chapters 04 and 15 walk it.

    from vldm_mini import lab
    print(lab.check(MyLayer))          # MyLayer(place) -> nn.Module with forward(z, clip): see vldm_mini.temporal

The layer is made small and fresh, tried on random clips of random numbers, and trained for two steps.
"""
import math
import textwrap
import time
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load, save
from torch import nn

from vldm_mini.temporal import Clip, InsertionPoint, TemporalMix

BATCH, FRAMES, SIZE, TOKENS = 2, 6, 3, 5
CAPS = (1, 3, 13, 40)                 # numbers of frames to try beside FRAMES: 24 and 32 are common sizes of tables
OK, FAIL, NOTE = "ok", "FAIL", "note"


# ---------------------------------------------------------------------------------------------------------------------
# What comes out.

@dataclass(frozen=True)
class Finding:
    """One row: `result` is "ok", "FAIL" or "note"; what the check means, what was seen, what to do about it."""
    check: str
    result: str
    means: str
    seen: str = ""
    todo: str = ""

    def __str__(self):
        rows = [f"{self.check:<24}{self.result:<6}{self.means}"]
        for word, text in (("seen: ", self.seen), ("do:   ", self.todo)):
            rows += textwrap.wrap(text, 118, initial_indent=" " * 30 + word, subsequent_indent=" " * 36)
        return "\n".join(rows)


@dataclass(frozen=True)
class Report:
    """What `check` returns; print it. `ok`: nothing failed. `failed`: names of the checks that did. `report[name]`."""
    layer: str
    findings: tuple
    parameters: int
    seconds: float

    @property
    def ok(self):
        return not self.failed

    @property
    def failed(self):
        return [f.check for f in self.findings if f.result == FAIL]

    @property
    def notes(self):
        return [f.check for f in self.findings if f.result == NOTE]

    def __getitem__(self, check):
        return {f.check: f for f in self.findings}[check]

    def __str__(self):
        end = "a temporal layer like any other" if self.ok else f"{len(self.failed)} failed: {', '.join(self.failed)}"
        head = f"{self.layer}: {self.parameters:,} parameters, checked in {self.seconds:.1f} s"
        return "\n".join([head, "-" * 118, *map(str, self.findings), "-" * 118, f"{self.layer}: {end}"])

    __repr__ = __str__


# ---------------------------------------------------------------------------------------------------------------------
# The bench: small layers and random clips.

class Bench:
    """Makes what the checks try: fresh layers, layers with random weights, clips. Same seed, same everything."""

    def __init__(self, make, mix, place, seed):
        self.make, self.mix, self.place, self.rng = make, mix, place, torch.Generator().manual_seed(seed)

    def randn(self, *shape):
        return torch.randn(shape, generator=self.rng)

    def layer(self, fresh=True):
        """A layer at its start, or (fresh=False) with noise on every weight, as if trained."""
        layer = self.make(self.place).eval()
        if not fresh:
            with torch.no_grad():
                for p in layer.parameters():
                    p += 0.2 * self.randn(*p.shape)
        return layer

    def clip(self, t=FRAMES, b=BATCH, size=SIZE):
        """Random z (b c t h w) and its Clip: the embedding of tau is the same for all frames, as in a real run."""
        place = self.place
        emb = self.randn(b, 1, place.emb_channels).expand(b, t, -1)
        text = self.randn(b, TOKENS, place.text_channels) if place.text_channels else None
        told = self.randn(b, place.context_channels, t, size, size) if place.context_channels else None
        regime = torch.arange(b) % place.regimes if place.regimes else None
        return self.randn(b, place.channels, t, size, size), Clip(t, emb=emb, text=text, context=told, regime=regime)


def check(make, mix=TemporalMix, *, channels=64, heads=2, emb_channels=24, text_channels=None, kind="attention", seed=0,
          **options):
    """Is this a temporal layer? -> Report; print it.

    make: called as make(place), gives an nn.Module with forward(z (b c t h w), clip) -> (b c t h w).
    mix: the wrapper that blends its answer with z, called as mix(layer, place) or mix(layer, place, alpha=0.62).
    The other arguments set the InsertionPoint; with text_channels, context_channels or regimes the clips carry them.
    """
    place = InsertionPoint("lab", kind, channels, emb_channels, text_channels, heads=heads, **options)
    start, findings = time.perf_counter(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, means, look in CHECKS:
            try:
                result, seen, todo = look(Bench(make, mix, place, seed))
            except Exception as error:                                  # a reader's layer may raise anything
                result, seen, todo = FAIL, f"{type(error).__name__}: {error}".splitlines()[0][:150], CRASH
            findings.append(Finding(name, result, means, seen, todo))
            if look is _runs and result == FAIL:
                break
        parameters = sum(p.numel() for p in make(place).parameters()) if findings[0].result == OK else 0
    return Report(getattr(make, "__name__", type(make).__name__), tuple(findings), parameters,
                  time.perf_counter() - start)


CRASH = "it raised this error; call the layer by hand with the same shapes to find the line"


# ---------------------------------------------------------------------------------------------------------------------
# The checks. Each: Bench -> (result, what was seen, what to do).

@torch.no_grad()
def _runs(bench):
    z, clip = bench.clip()
    layer, before = bench.layer(fresh=False), z.clone()
    out = layer(z, clip)
    if out.shape != z.shape:
        return FAIL, f"{tuple(z.shape)} in, {tuple(out.shape)} out", "return the shape that came in: b c t h w"
    if not torch.equal(z, before):
        return FAIL, "z was changed in place", "write z = z + ..., not z += ...: the mix still needs the old z"
    if not torch.equal(layer(z, clip), out):
        return FAIL, "the second call gave another answer", "keep nothing between calls (clip.state is for that)"
    return OK, "", ""


@torch.no_grad()
def _identity(bench):
    z, clip = bench.clip()
    out = bench.layer()(z, clip)
    if torch.equal(out, z):
        return OK, "", ""
    error = float((out - z).abs().max())
    late = (out[:, :, 1:] == z[:, :, :-1]).flatten(2).all(-1).all(0) & ~(out == z).flatten(2).all(-1).all(0)
    if late.all():
        return FAIL, "the layer is a delay: each frame comes out one frame late", \
            "a causal kernel's identity is its last tap, not its middle one; or zero the kernel and add it to z"
    if late.any():
        return FAIL, f"{int(late.sum())} of {len(late)} channels come out one frame late: a token shift on the skip", \
            "shift only inside the branch, return z + branch, and zero the branch's last projection"
    if error < 1e-5:
        return FAIL, f"off by rounding, {error:.0e}: a blend written alpha * z + (1 - alpha) * z_t", \
            "write z + (1 - alpha) * (z_t - z), or leave the mix to the wrapper"
    return FAIL, f"a fresh layer changes z by up to {error:.2g}", \
        "zero-initialise the last projection of every branch (temporal.zero_init) and add it to z"


@torch.no_grad()
def _alpha_one(bench):
    z, clip = bench.clip()
    mix = bench.mix(bench.layer(fresh=False), bench.place)
    mix.fixed_alpha = 1.0
    off = (mix(z, clip) != z).float().mean()
    mix.fixed_alpha = None
    fresh_off = (bench.mix(bench.layer(), bench.place, alpha=0.62)(z, clip) != z).float().mean()
    if off:
        return FAIL, f"at alpha = 1, {off:.0%} of the values differ from z", "alpha = 1 has to give z back to the bit"
    if fresh_off and torch.equal(bench.layer()(z, clip), z):
        return FAIL, f"where z_t = z, {fresh_off:.0%} of the blended values differ from z", \
            "the naive blend alpha * z + (1 - alpha) * z_t rounds; write z + (1 - alpha) * (z_t - z)"
    return OK, "", ""


@torch.no_grad()
def _image_mode(bench):
    z, clip = bench.clip()
    layer = bench.layer()
    for p in layer.parameters():
        p.fill_(float("nan"))
    if not torch.equal(bench.mix(layer, bench.place)(z, replace(clip, image=True)), z):
        return FAIL, "with clip.image the layer still has a say", \
            "skip the layer in image mode; do not multiply it by zero (0 times NaN is NaN)"
    return OK, "", ""


def reach(layer, z, clip):
    """(t, t) bool: [i, j] is True where output frame i moves when input frame j does."""
    with torch.no_grad():
        before, rows = layer(z, clip), []
        for j in range(clip.frames):
            other = z.clone()
            other[:, :, j] = other[:, :, j].flip(0) + 1.0
            rows.append((layer(other, clip) - before).abs().amax((0, 1, 3, 4)) > 1e-6)
    return torch.stack(rows, dim=1)


def _frames(bench):
    z, clip = bench.clip()
    seen = reach(bench.layer(fresh=False), z, clip)
    others = seen & ~torch.eye(clip.frames, dtype=torch.bool)
    if not others.any():
        why = "they look at the text only" if clip.text is not None else "each frame is treated alone"
        return FAIL, f"no frame changes when another one does: {why}", \
            "let queries, keys and values all come from the frames (text has an attention of its own)"
    if not others.triu().any() or not others.tril().any():
        return NOTE, "causal: frames look one way in time only", "meant so? then say so; rollouts depend on it"
    if not (others | torch.eye(clip.frames, dtype=torch.bool)).all():
        return NOTE, f"a frame sees {int(others.sum(1).max())} of the {clip.frames - 1} others", \
            "fine for a convolution; far frames meet through several layers or through attention"
    return OK, "", ""


@torch.no_grad()
def _clips(bench):
    (z, clip), (other, clip2) = bench.clip(), bench.clip()
    layer = bench.layer(fresh=False)
    keep = lambda a, b: None if a is None else torch.cat([a[:1], b[1:]])                        # noqa: E731
    mixed = replace(clip, emb=keep(clip.emb, clip2.emb), text=keep(clip.text, clip2.text))
    change = float((layer(keep(z, other), mixed)[0] - layer(z, clip)[0]).abs().max())
    if change > 1e-5:
        return FAIL, f"clip 0 moves by {change:.2g} when clip 1 is replaced", \
            "fold and unfold with named axes, 'b c t h w -> (b h w) t c' and back; no norm over the batch"
    return OK, "", ""


@torch.no_grad()
def _other_t(bench):
    layer = bench.layer(fresh=False)
    for t in CAPS:
        z, clip = bench.clip(t, size=2)
        try:
            fine = layer(z, clip).isfinite().all()
        except Exception as error:                                      # a reader's layer may raise anything
            return FAIL, f"T = {t}: {type(error).__name__}: {str(error).splitlines()[0][:90]}", \
                "make positions a function of the index (blocks.sinusoidal_embedding), not a table with an end"
        if not fine:
            return FAIL, f"T = {t} gives values that are not finite", "divide by T only where T = 1 is safe"
    return OK, "", ""


def _order(bench):
    z, clip = bench.clip()
    layer, turned = bench.layer(fresh=False), z.flip(2)
    with torch.no_grad():
        if torch.allclose(layer(turned, clip), layer(z, clip).flip(2), atol=1e-5):
            return NOTE, "the film run backwards gives the answer run backwards", "add a position to each frame"
    return OK, "", ""


def _gradient(bench):
    """Two steps of descent on random targets: a weight that has had no gradient by then never learns."""
    mix = bench.mix(bench.layer(), bench.place).train()
    named, got = dict(mix.named_parameters()), []
    for _ in range(2):
        z, clip = bench.clip()
        grads = torch.autograd.grad((mix(z, clip) * bench.randn(*z.shape)).mean(), list(named.values()),
                                    allow_unused=True)
        got.append({name for name, g in zip(named, grads) if g is not None and g.any()})
        with torch.no_grad():
            for p, g in zip(named.values(), grads):
                if g is not None and g.any():
                    p -= 0.05 * g / g.abs().max()
    dead = [name.removeprefix("layer.") for name in named if name not in got[0] | got[1]]
    matrices = [name for name in named if named[name].ndim > 1]
    if not dead and (not matrices or got[0] & set(matrices)):
        return OK, "", ""
    return FAIL, *_why_dead(named, got, dead)


def _why_dead(named, got, dead):
    names = ", ".join(dead[:4]) + (f" and {len(dead) - 4} more" if len(dead) > 4 else "")
    if got[0] and all(named[name].numel() == 1 for name in got[0]):
        return "at the first step only a mixing scalar gets a gradient: (1 - alpha) is 0, alpha can stick", \
            "alpha = sigmoid(mix), starting near 0.5, and a zero-initialised end; not a clamp at 1"
    if not any(named[name].ndim > 1 for name in got[0]):
        return f"no weight matrix gets a gradient at the first step: zero times zero is dead ({names or 'all'})", \
            "zero only the last projection of a branch; q, k and v start at random"
    return f"no gradient in two steps: {names}", "is it used in forward? is something after it zero for good?"


def _low_precision(bench):
    z, clip = bench.clip()
    layer = bench.layer(fresh=False)
    with torch.no_grad():
        want, peak = layer(z, clip), _peak(layer, z, clip)
        half = lambda x: None if x is None else x.bfloat16()                                    # noqa: E731
        out = layer.bfloat16()(half(z), replace(clip, emb=half(clip.emb), text=half(clip.text),
                                                      context=half(clip.context)))
    if out.dtype != torch.bfloat16:
        return FAIL, f"bf16 in, {out.dtype} out", "cast what you make inside (positions, masks) with .to(z.dtype)"
    error = float((out.float() - want).norm() / want.norm())
    if not out.isfinite().all() or error > 0.1:
        return FAIL, f"bf16 is off by {error:.0%} of the fp32 answer", "keep sums, norms and exponentials in fp32"
    if peak > 6e4:
        return FAIL, f"values reach {peak:.2g}; fp16 ends at 65,504", "normalise before, or scale, the large product"
    return OK, f"bf16 within {error:.1%}, largest value {peak:.2g}", ""


def _peak(layer, z, clip):
    """The largest number that leaves any module inside, in fp32."""
    peaks = []
    note = lambda m, args, out: peaks.append(float(out.abs().max()) if torch.is_tensor(out) else 0.0)   # noqa: E731
    hooks = [m.register_forward_hook(note) for m in layer.modules()]
    layer(z, clip)
    for hook in hooks:
        hook.remove()
    return max(p if math.isfinite(p) else math.inf for p in peaks)


def _memory(bench):
    """Bytes kept for the backward pass at T = 64 and 128, one place of one clip."""
    layer, kept = bench.layer(fresh=False), []
    for t in (64, 128):
        z, clip = bench.clip(t, b=1, size=1)
        try:
            kept.append(_kept_bytes(layer, z.requires_grad_(), clip))
        except Exception:                                               # a reader's layer may raise anything
            return NOTE, f"not measured: it does not run at T = {t}", "see the check of other T"
    power = math.log2(kept[1] / kept[0])
    seen = f"T to 2T keeps {kept[1] / kept[0]:.2f} times the activations ({kept[1] // 1024} KiB at T = 128)"
    if power > 1.3:
        return NOTE, seen + ": grows towards T squared", "attention through scaled_dot_product_attention keeps T only"
    return OK, seen, ""


def _kept_bytes(layer, z, clip):
    own, kept = {p.untyped_storage().data_ptr() for p in layer.parameters()}, {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = layer(z, clip)                    # held until counted, so that no address is used twice
    return sum(kept.values()) if out is not None else 0


@torch.no_grad()
def _round_trip(bench):
    z, clip = bench.clip()
    layer, other = bench.layer(fresh=False), bench.layer(fresh=False)
    missing = other.load_state_dict(load(save({k: v.contiguous() for k, v in layer.state_dict().items()})))
    if missing.missing_keys or not torch.equal(layer(z, clip), other(z, clip)):
        return FAIL, "saved and loaded again, it gives another answer", \
            "hold every tensor as a Parameter or with register_buffer, so that it is in state_dict"
    return OK, "", ""


def _pooling(bench):
    z, clip = bench.clip()
    layer, found = bench.layer(), []
    for name, module in layer.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.InstanceNorm3d)):
            module.register_forward_pre_hook(
                lambda m, args, name=name: found.append(name) if args[0].ndim == 5 and args[0].shape[2] > 1 else None)
    with torch.no_grad():
        layer(z, clip)
    if found:
        return NOTE, f"{', '.join(found)} take mean and variance over all frames", \
            "known and chosen by SVD; then a chunk of a film is not the film's chunk. Else fold t into the batch first"
    return OK, "", ""


CHECKS = (
    ("runs", "b c t h w in and out, z left alone, same answer twice", _runs),
    ("identity at start", "a fresh layer gives z back to the bit: the video model starts as the image one", _identity),
    ("exact blend", "alpha = 1, and a branch that adds nothing, give z back to the bit", _alpha_one),
    ("image mode", "with clip.image the layer is not even called", _image_mode),
    ("frames see one another", "change one frame and others change: without it there is no video", _frames),
    ("clips do not mix", "a clip's answer does not depend on its neighbour in the batch", _clips),
    ("other T", f"runs at T = {', '.join(map(str, CAPS))}, not only at the trained number of frames", _other_t),
    ("order of frames", "it can tell forwards from backwards", _order),
    ("gradient", "every weight gets a gradient within two steps, some matrix at the first", _gradient),
    ("low precision", "bf16 stays close to fp32, nothing outgrows fp16", _low_precision),
    ("memory against T", "what is kept for the backward pass grows with T, not with T squared", _memory),
    ("state_dict", "saved, loaded into a new layer: same answer", _round_trip),
    ("norms over time", "statistics are each frame's own", _pooling),
)
