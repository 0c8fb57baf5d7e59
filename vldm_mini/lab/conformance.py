"""`check(MyLayer)`: the conformance test of a temporal layer, in seconds.

It looks for the mistakes that are found in public code. Chapters 04 and 15 walk through it.

    from vldm_mini import lab
    print(lab.check(MyLayer))     # a class, functools.partial, or dict(layer=MyLayer, key=value)

The layer is built small and fresh, called with random clips, trained for two steps, and inserted
into a small U-Net.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from vldm_mini.layer_classes import LayerClass
from vldm_mini.temporal import InsertionPoint, TemporalMix

from . import checks, training_checks
from .bench import CRASH, LENGTHS, Bench, crash
from .report import FAIL, OK, Finding, Report


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
            if look is checks.runs and findings[0].result == FAIL:
                break
        parameters = 0
        if findings[0].result == OK:
            parameters = sum(p.numel() for p in layer_class(point).parameters())
    return Report(layer_class.name, tuple(findings), parameters, time.perf_counter() - start)


CHECKS = (
    ("runs", "b c t h w in and out, z left alone, the same result twice", checks.runs),
    ("real insertion points", "it runs at all insertion points of a U-Net", checks.real_points),
    ("identity at start", "a fresh layer returns z exactly: the video model starts as the image "
     "model", checks.identity),
    ("exact mix", "alpha = 1, and a branch that adds nothing, return z exactly", checks.alpha_one),
    ("image mode", "with clip.image the layer is not even called", checks.image_mode),
    ("frames see one another", "change one frame and others change: else there is no video",
     checks.frames),
    ("mask", "frames that clip.mask hides have no effect", checks.mask),
    ("context", "c_S of zeros is no context", checks.context),
    ("regimes", "it runs with and without clip.regime", checks.regimes),
    ("clips do not mix", "a clip's result does not depend on its neighbour in the batch",
     checks.clips),
    ("other T", f"runs at T = {', '.join(map(str, LENGTHS))}, not only as trained",
     checks.other_t),
    ("order of frames", "forwards and backwards differ", training_checks.order),
    ("gradient", "every weight gets a gradient within two steps, some matrix at the first",
     training_checks.gradient),
    ("low precision", "bf16 stays close to fp32, nothing exceeds the range of fp16",
     training_checks.low_precision),
    ("memory against T", "what is kept for the backward pass grows with T, not with T squared",
     training_checks.memory),
    ("state_dict", "saved and loaded into a new layer: the same result",
     training_checks.round_trip),
    ("norms over time", "statistics are each frame's own", training_checks.pooling),
)
