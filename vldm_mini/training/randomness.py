"""The random numbers of one training step, for the whole batch at once.

They are a function of (seed, step) alone: a run that was stopped and resumed draws the same numbers
as an unbroken one, and two processes, which take one half of the batch each, the same as one.
"""
import torch
from torch import Tensor


def mixed_seed(seed: int, step: int) -> int:
    """One 63-bit seed for (seed, step); neighbouring steps get unrelated ones (splitmix64)."""
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2 ** 64
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2 ** 64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2 ** 64
    return (x ^ x >> 31) % 2 ** 63


class BatchRandom:
    """Draws for the samples of one step, on the device that trains.

    Every method draws for the whole batch in one call and returns the rows of this process and of
    this part of an accumulated batch, (b, ...). The order of the calls decides who gets which
    numbers, so that a loss makes the same calls at every step.
    """

    def __init__(self, seed: int, step: int, batch: int, device: torch.device,
                 part: int = 0, parts: int = 1) -> None:
        if batch % parts:
            raise ValueError(f"a batch of {batch} cannot be divided into {parts} equal parts; "
                             "choose a multiple")
        self.step, self.batch, self.device, self.part = step, batch, device, part
        self.generator = torch.Generator(device).manual_seed(mixed_seed(seed, step))
        size = batch // parts
        self.rows = slice(part * size, (part + 1) * size)
        self.size = size

    @property
    def samples(self) -> list[int]:
        """The numbers of these samples in the whole batch."""
        return list(range(self.rows.start, self.rows.stop))

    @property
    def index(self) -> Tensor:
        """`samples` as a tensor on the device, (b,) long."""
        return torch.arange(self.rows.start, self.rows.stop, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1): (b, *shape) float32."""
        full = torch.rand(self.batch, *shape, generator=self.generator, device=self.device)
        return full[self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: (b, *shape) float32."""
        full = torch.randn(self.batch, *shape, generator=self.generator, device=self.device)
        return full[self.rows]

    def integers(self, high: int | Tensor, *shape: int) -> Tensor:
        """Uniform whole numbers from 0 to high - 1; high may differ by sample. (b, *shape) long."""
        below = (self.uniform(*shape) * high).long()
        limit = high - 1 if isinstance(high, int) else high.long() - 1
        # in float32 u * high can round up to high itself
        return torch.minimum(below, torch.as_tensor(limit, device=self.device))
