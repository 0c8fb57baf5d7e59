"""Temporal layers with the mistakes found in public code, one each. `lab.check` finds them all."""

import torch
from einops import rearrange
from torch import nn

from vldm_mini.blocks import Attention, FeedForward, sinusoidal_embedding, zero_init
from vldm_mini.temporal import TemporalConv, TemporalMix


class Sound(nn.Module):
    """A small temporal attention without mistakes; the broken ones below change one thing."""

    def __init__(self, point):
        super().__init__()
        c = point.channels
        self.norm, self.attention = nn.LayerNorm(c), Attention(c, point.heads)
        self.position = zero_init(nn.Linear(c, c))

    def fold(self, z):
        return rearrange(z, "b c t h w -> (b h w) t c")

    def unfold(self, x, z):
        return rearrange(x, "(b h w) t c -> b c t h w", h=z.shape[3], w=z.shape[4])

    def positions(self, x):
        t, c = x.shape[1:]
        return self.position(sinusoidal_embedding(torch.arange(t), c).to(x.dtype))

    def forward(self, z, clip):
        x = self.fold(z)
        x = x + self.positions(x)
        x = x + self.attention(self.norm(x), mask=clip.mask)
        return self.unfold(x, z)


class Scaled(Sound):
    """Sound, with a hyperparameter."""

    def __init__(self, point, scale=1.0):
        super().__init__(point)
        self.scale = scale

    def forward(self, z, clip):
        return z + self.scale * (super().forward(z, clip) - z)


class TextAsKeysAndValues(Sound):
    """Mistake 1: frames attend to the text only, and no frame depends on another."""

    def __init__(self, point):
        super().__init__(point)
        self.attention = Attention(point.channels, point.heads, point.text_channels or 64)

    def forward(self, z, clip):
        x = self.fold(z)
        text = clip.text.repeat_interleave(x.shape[0] // len(clip.text), 0)
        x = x + self.positions(x)
        x = x + self.attention(self.norm(x), text)
        return self.unfold(x, z)


class ClampedAlpha(Sound):
    """Mistake 2: an alpha of its own, at 1 and clamped: no weight behind it learns."""

    def __init__(self, point):
        super().__init__(point)
        nn.init.normal_(self.attention.to_out.weight, std=0.1)
        self.alpha = nn.Parameter(torch.ones(()))

    def forward(self, z, clip):
        return z + (1 - self.alpha.clamp(0, 1)) * (super().forward(z, clip) - z)


class AllZero(Sound):
    """Mistake 3: q, k, v and the output all start at zero: each waits for the others."""

    def __init__(self, point):
        super().__init__(point)
        for layer in (self.attention.to_q, self.attention.to_k, self.attention.to_v):
            zero_init(layer)
        self.position = nn.Identity()

    def positions(self, x):
        return sinusoidal_embedding(torch.arange(x.shape[1]), x.shape[2]).to(x.dtype) * 0


class TokenShift(Sound):
    """Mistake 4: the feed-forward shifts half of the channels by a frame, on the skip too."""

    def __init__(self, point):
        super().__init__(point)
        self.ff = FeedForward(point.channels)

    def forward(self, z, clip):
        c = z.shape[1] // 2
        late = torch.cat([torch.zeros_like(z[:, c:, :1]), z[:, c:, :-1]], dim=2)
        x = self.fold(torch.cat([z[:, :c], late], dim=1))
        x = x + self.ff(self.norm(x))
        x = x + self.attention(self.norm(x), mask=clip.mask)
        return self.unfold(x + self.positions(x), z)


class CausalDirac(nn.Module):
    """Mistake 4: a causal convolution with the identity on its middle tap is a delay."""

    def __init__(self, point):
        super().__init__()
        self.conv = nn.Conv3d(point.channels, point.channels, (3, 1, 1))
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, z, clip):
        return self.conv(nn.functional.pad(z, (0, 0, 0, 0, 2, 0)))


class UnzeroedProjection(Sound):
    """Mistake 4: the output projection is random at first."""

    def __init__(self, point):
        super().__init__(point)
        nn.init.normal_(self.attention.to_out.weight, std=0.1)


class NaiveMixInside(Sound):
    """Mistake 4: the mix as it is printed, off by rounding where it should change nothing."""

    def __init__(self, point):
        super().__init__(point)
        self.mix = nn.Parameter(torch.tensor(0.5))

    def forward(self, z, clip):
        alpha = self.mix.sigmoid()
        return alpha * z + (1 - alpha) * super().forward(z, clip)


class NaiveMix(TemporalMix):
    """The same mistake in the wrapper instead of the layer."""

    def forward(self, z, clip):
        if clip.image:
            return z
        return self.alpha * z + (1 - self.alpha) * self.layer(z, clip)


class TimesZero(TemporalMix):
    """Image mode by multiplication: 0 times NaN is NaN."""

    def forward(self, z, clip):
        alpha = torch.ones_like(self.mix) if clip.image else self.alpha
        return z + (1 - alpha) * (self.layer(z, clip) - z)


class FrameTable(Sound):
    """Mistake 8: positions from a table of 24 frames."""

    def __init__(self, point):
        super().__init__(point)
        self.position = zero_init_table(24, point.channels)

    def positions(self, x):
        return self.position(torch.arange(x.shape[1]))


def zero_init_table(frames, channels):
    table = nn.Embedding(frames, channels)
    nn.init.zeros_(table.weight)
    return table


class MixedClips(Sound):
    """Mistake 15: unfolded as (t b) what was folded as (b t)."""

    def forward(self, z, clip):
        b, c, t, h, w = z.shape
        x = rearrange(z, "b c t h w -> (b t) (h w) c")
        x = rearrange(x, "(t b) n c -> (b n) t c", b=b)
        x = x + self.positions(x)
        x = x + self.attention(self.norm(x), mask=clip.mask)
        x = rearrange(x, "(b n) t c -> (t b) n c", b=b)
        return rearrange(x, "(b t) (h w) c -> b c t h w", b=b, h=h)


class BatchNormed(Sound):
    """Batch norm: in training a clip depends on the others of its batch."""

    def __init__(self, point):
        super().__init__(point)
        self.batch = nn.BatchNorm3d(point.channels)

    def forward(self, z, clip):
        normed = self.batch(z)
        return z + (super().forward(normed, clip) - normed)


class Wrapped(nn.Module):
    """torch.roll is circular: the first frame takes from the last one."""

    def __init__(self, point):
        super().__init__()
        self.project = zero_init(nn.Linear(point.channels, point.channels))

    def forward(self, z, clip):
        before = z.roll(1, dims=2).movedim(1, -1)
        return z + self.project(before).movedim(-1, 1)


class OneWidth(Sound):
    """A width written down as a number: right on the bench, wrong in a network."""

    def __init__(self, point):
        super().__init__(point)
        self.position = zero_init(nn.Linear(64, point.channels))


class RandomInEvaluation(Sound):
    """Dropout that does not stop in evaluation mode."""

    def forward(self, z, clip):
        return z + nn.functional.dropout(super().forward(z, clip) - z, 0.5)


class BiasOfContext(TemporalConv):
    """c_S through a convolution with a bias: zeros are then not 'nothing given'."""

    def __init__(self, point):
        super().__init__(point)
        if point.context_channels:
            self.context.bias = nn.Parameter(torch.zeros(point.channels))

    def forward(self, z, clip):
        return super().forward(z, clip)


class Float32Inside(Sound):
    """A result in float32 whatever z is."""

    def forward(self, z, clip):
        return super().forward(z, clip).float()


class NotSaved(Sound):
    """A tensor that is not in state_dict."""

    def __init__(self, point):
        super().__init__(point)
        self.scale = torch.randn(point.channels)

    def forward(self, z, clip):
        scale = self.scale.to(z.dtype)[:, None, None, None]
        return z + (super().forward(z, clip) - z) * scale


class Overwriting(Sound):
    """z changed in place, which the mix still needs."""

    def forward(self, z, clip):
        z += super().forward(z, clip) - z
        return z
