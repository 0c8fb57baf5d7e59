"""Residual block, attention, feed-forward: what every network here is made of. Knows nothing else of the package.

Paper: the backbones follow Rombach et al. 2022 and Dhariwal & Nichol 2021. Images are `b c h w`, tokens `b n c`.
"""
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def zero_init(layer):
    """The last layer of a branch starts at zero, so that the branch starts by adding nothing."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def group_norm(channels, eps=1e-5):
    """32 groups as in Stable Diffusion, fewer where the width asks for it, so that a group is more than one channel."""
    groups = 32 if channels >= 128 else 16 if channels >= 32 else 4
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps)


class ChannelLayerNorm(nn.Module):
    """Each place of a picture or film for itself: its channels, over their root mean square. (b c ...) -> like it.

    RMSNorm (Zhang & Sennrich 2019). MINI: group norm looks at the whole picture, so that a tile of it comes out
    otherwise than it does in the whole. Here it does not: what is trained on patches is applied at any size.
    """

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x):
        x = x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return x * self.weight.view(-1, *[1] * (x.ndim - 2))


def sinusoidal_embedding(position, dim, max_period=10000):
    """Position (n,), of diffusion time or of a frame -> (n, dim): cosines, then sines, of falling frequency.

    A function of the number and no table: there is no largest frame. Raises ValueError for an odd dim.
    """
    if dim % 2:
        raise ValueError(f"the embedding is half cosines, half sines: dim must be even, got {dim}")
    # frequency_i = max_period^(-i / (dim / 2))                                           Vaswani et al. 2017, 3.5
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=position.device) / (dim // 2))
    angle = position.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a skip; the embedding of tau is added between them. (b c_in h w) -> (b c_out h w).

    norm: made as norm(channels), group_norm or ChannelLayerNorm.
    """

    def __init__(self, c_in, c_out, emb_channels=None, norm=group_norm):
        super().__init__()
        self.c_out, self.emb_channels = c_out, emb_channels
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb_channels, c_out) if emb_channels else None
        self.norm2 = norm(c_out)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb=None):
        skip = self.skip(x)
        x = self.conv1(F.silu(self.norm1(x)))
        if self.emb is not None:
            x = x + self.emb(F.silu(emb))[:, :, None, None]
        x = self.conv2(F.silu(self.norm2(x)))
        return x + skip


class Attention(nn.Module):
    """Multi-head attention over tokens. x (b n c), context (b m d) or None for self-attention -> (b n c)."""

    def __init__(self, channels, heads, context_channels=None):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads; choose a divisor")
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = zero_init(nn.Linear(channels, channels))

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        # contiguous, head dimension last: otherwise the fast attention kernels are not used
        q, k, v = (rearrange(f(u), "b n (h d) -> b h n d", h=self.heads).contiguous()
                   for f, u in ((self.to_q, x), (self.to_k, context), (self.to_v, context)))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(x, "b h n d -> b n (h d)"))


class SpatialAttention(nn.Module):
    """Every place of a frame looks at every other. (b c h w) -> (b c h w)."""

    def __init__(self, channels, heads):
        super().__init__()
        self.channels, self.heads = channels, heads
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads)

    def forward(self, x):
        skip, h = x, x.shape[-2]
        x = rearrange(self.norm(x), "b c h w -> b (h w) c")
        x = rearrange(self.attention(x), "b (h w) c -> b c h w", h=h)
        return x + skip


class FeedForward(nn.Module):
    """Gated feed-forward (GEGLU, Shazeer 2020), applied to each token alone. (... c) -> (... c)."""

    def __init__(self, channels, mult=4):
        super().__init__()
        self.up = nn.Linear(channels, 2 * mult * channels)
        self.down = zero_init(nn.Linear(mult * channels, channels))

    def forward(self, x):
        x, gate = self.up(x).chunk(2, dim=-1)
        return self.down(x * F.gelu(gate))


class Downsample(nn.Module):
    """Halve height and width. (b c_in h w) -> (b c_out h/2 w/2)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width. (b c_in h w) -> (b c_out 2h 2w)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
