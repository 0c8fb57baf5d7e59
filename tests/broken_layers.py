"""Temporal layers with the mistakes found in public code, one each. `lab.check` has to find every one of them."""
import torch
from einops import rearrange
from torch import nn

from vldm_mini.blocks import Attention, FeedForward, sinusoidal_embedding, zero_init
from vldm_mini.temporal import TemporalMix


class Sound(nn.Module):
    """A small temporal attention with nothing wrong; the broken ones below change one thing."""

    def __init__(self, place):
        super().__init__()
        c = place.channels
        self.norm, self.attention = nn.LayerNorm(c), Attention(c, place.heads)
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
        x = x + self.attention(self.norm(x))
        return self.unfold(x, z)


class TextAsKeysAndValues(Sound):
    """Mistake 1: frames ask, the text answers, and no frame ever sees another."""

    def __init__(self, place):
        super().__init__(place)
        self.attention = Attention(place.channels, place.heads, place.text_channels)

    def forward(self, z, clip):
        x = self.fold(z)
        text = clip.text.repeat_interleave(x.shape[0] // len(clip.text), 0)
        x = x + self.positions(x)
        x = x + self.attention(self.norm(x), text)
        return self.unfold(x, z)


class ClampedAlpha(Sound):
    """Mistake 2: an alpha of its own, at 1 and clamped: no weight behind it learns."""

    def __init__(self, place):
        super().__init__(place)
        nn.init.normal_(self.attention.to_out.weight, std=0.1)
        self.alpha = nn.Parameter(torch.ones(()))

    def forward(self, z, clip):
        return z + (1 - self.alpha.clamp(0, 1)) * (super().forward(z, clip) - z)


class AllZero(Sound):
    """Mistake 3: q, k, v and the output all start at zero: each waits for the others."""

    def __init__(self, place):
        super().__init__(place)
        for layer in (self.attention.to_q, self.attention.to_k, self.attention.to_v):
            zero_init(layer)
        self.position = nn.Identity()

    def positions(self, x):
        return sinusoidal_embedding(torch.arange(x.shape[1]), x.shape[2]).to(x.dtype) * 0


class TokenShift(Sound):
    """Mistake 4: the feed-forward shifts half the channels by a frame, on the skip too."""

    def __init__(self, place):
        super().__init__(place)
        self.ff = FeedForward(place.channels)

    def forward(self, z, clip):
        c = z.shape[1] // 2
        late = torch.cat([torch.zeros_like(z[:, c:, :1]), z[:, c:, :-1]], dim=2)
        x = self.fold(torch.cat([z[:, :c], late], dim=1))
        x = x + self.ff(self.norm(x))
        x = x + self.attention(self.norm(x))
        return self.unfold(x + self.positions(x), z)


class CausalDirac(nn.Module):
    """Mistake 4: a causal convolution with the identity on its middle tap is a delay of one frame."""

    def __init__(self, place):
        super().__init__()
        self.conv = nn.Conv3d(place.channels, place.channels, (3, 1, 1))
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, z, clip):
        return self.conv(nn.functional.pad(z, (0, 0, 0, 0, 2, 0)))


class UnzeroedProjection(Sound):
    """Mistake 4: the output projection was left at random."""

    def __init__(self, place):
        super().__init__(place)
        nn.init.normal_(self.attention.to_out.weight, std=0.1)


class NaiveBlend(Sound):
    """Mistake 4: the blend as it is printed, off by rounding where it should change nothing."""

    def __init__(self, place):
        super().__init__(place)
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

    def __init__(self, place):
        super().__init__(place)
        self.position = zero_init_table(24, place.channels)

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
        x = x + self.attention(self.norm(x))
        x = rearrange(x, "(b n) t c -> (t b) n c", b=b)
        return rearrange(x, "(b t) (h w) c -> b c t h w", b=b, h=h)


class Float32Inside(Sound):
    """An answer in float32 whatever z is."""

    def forward(self, z, clip):
        return super().forward(z, clip).float()


class NotSaved(Sound):
    """A tensor that state_dict does not know."""

    def __init__(self, place):
        super().__init__(place)
        self.scale = torch.randn(place.channels)

    def forward(self, z, clip):
        return z + (super().forward(z, clip) - z) * self.scale.to(z.dtype)[:, None, None, None]


class InPlace(Sound):
    """z changed under the feet of the mix."""

    def forward(self, z, clip):
        z += super().forward(z, clip) - z
        return z
