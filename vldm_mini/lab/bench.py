"""What the checks of a temporal layer work with: small layers, random clips, error messages."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vldm_mini.layer_classes import LayerClass
from vldm_mini.temporal import Clip, InsertionPoint

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


CRASH = "it raised this error at that line"


def crash(error: Exception) -> str:
    """The error and the line of the reader's code that raised it: "file.py:12: ValueError: ..."."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts]
    readers = [frame for frame in outside if PACKAGE not in Path(frame.filename).parents]
    last = (readers or outside or frames)[-1]
    text = (str(error).splitlines() or [""])[0][:120]
    return f"{Path(last.filename).name}:{last.lineno}: {type(error).__name__}: {text}"
