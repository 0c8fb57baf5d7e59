"""Temporal attention with one mistake each, which chapter 04 trains beside the right layer.

Each class is the paper's `TemporalAttention` (section 3.1, Fig. 4) but for one change. None of them
raises an error, and all outputs have the right shape. `small_networks` stores trained ones.
"""

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from ..temporal import Clip, InsertionPoint, TemporalAttention


class TextAsKeys(TemporalAttention):
    """Keys and values come from a text of three words: no frame attends to another frame."""

    def __init__(self, point: InsertionPoint) -> None:
        super().__init__(point)
        self.register_buffer("words", torch.eye(3, point.channels), persistent=False)

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        x = rearrange(z, "b c t h w -> (b h w) t c")
        text = self.words.expand(len(x), -1, -1)                            # (b h w) 3 c
        x = x + self.time(self.norm_time(x), text)
        x = x + self.ff_out(self.norm_out(x))
        return rearrange(x, "(b h w) t c -> b c t h w", h=z.shape[3], w=z.shape[4])


class ClipsMixed(TemporalAttention):
    """The axes are swapped: a row runs over the clips of the batch, not over the frames."""

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        swapped = rearrange(z, "b c t h w -> t c b h w")
        out = super().forward(swapped, replace(clip, frames=len(z)))
        return rearrange(out, "t c b h w -> b c t h w")


class ZeroEverywhere(TemporalAttention):
    """Not only the last matrix starts at zero, but all of attention and of the feed-forward."""

    def __init__(self, point: InsertionPoint) -> None:
        super().__init__(point)
        for p in [*self.time.parameters(), *self.ff_out.parameters()]:
            nn.init.zeros_(p)


class NoPositions(TemporalAttention):
    """All frames have position 0, so that nothing says in which order they come."""

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        same = torch.zeros(clip.frames, device=z.device)
        return super().forward(z, replace(clip, positions=same))
