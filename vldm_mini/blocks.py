"""Residual block, attention, feed-forward: what every network here consists of.

Paper: the backbones follow Rombach et al. 2022 and Dhariwal & Nichol 2021. Images are `b c h w`,
tokens `b n c`. This module knows nothing else of the package. Chapter 03 walks through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def zero_init(layer: nn.Module) -> nn.Module:
    """Set every parameter to zero, in place: for the last layer of a branch, which then adds 0."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """32 groups as in Stable Diffusion, fewer for narrow layers: a group needs several channels.

    With one channel a group, the norm would remove the embedding of tau, a constant per channel.
    """
    if channels >= 128:
        groups = 32
    elif channels >= 32:
        groups = 16
    else:
        groups = 4
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps)


class ChannelLayerNorm(nn.Module):
    """RMS norm over the channels at each position alone: (b c ...) -> (b c ...).

    Channels are divided by their root mean square, without subtracting a mean and without a bias
    (RMSNorm, Zhang & Sennrich 2019).
    """

    # MINI: the statistics of group norm depend on the whole picture, so that a tile gives another
    # result than the same region of the whole. Those of this norm do not: a network that is trained
    # on patches works at any size and in tiles.

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # y = weight x / sqrt(mean_c(x^2) + eps), with the mean in float32: squares overflow float16
        mean_square = _at_least_float32(x).square().mean(1, keepdim=True)
        x = x * (mean_square + self.eps).rsqrt().to(x.dtype)
        return x * self.weight.view(-1, *[1] * (x.ndim - 2))


def _at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sinusoidal_embedding(
    position: Tensor, dim: int, max_period: float = 10000, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Position (n,), of diffusion time or of a frame -> (n, dim): cosines, then sines.

    Frequencies decrease from 1 towards 1 / max_period (Vaswani et al. 2017, section 3.5). It is a
    function and no table, so that there is no largest frame. Computed in float32 (float64 for a
    dtype of float64) and returned in `dtype`, that of the weights that take it. Raises ValueError
    for an odd dim.
    """
    if dim % 2:
        raise ValueError(f"the embedding is half cosines, half sines: dim must be even, got {dim}")
    exact = torch.promote_types(dtype, torch.float32)
    half = dim // 2
    # frequency_i = max_period^(-i / (dim / 2))
    index = torch.arange(half, device=position.device, dtype=exact)
    frequency = torch.exp(-math.log(max_period) * index / half)
    angle = position.to(exact)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection: (b c_in h w), emb (b e) -> (b c_out h w).

    The embedding of tau is added between them. norm: called as norm(channels); group_norm or
    ChannelLayerNorm. emb_channels None: a block without embedding, as in an autoencoder.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_channels: int | None = None,
        norm: Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        self.c_out, self.emb_channels = c_out, emb_channels
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb_channels, c_out) if emb_channels else None
        self.norm2 = norm(c_out)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        skip = self.skip(x)
        x = self.conv1(F.silu(self.norm1(x)))
        if self.emb is not None:
            x = x + self.emb(F.silu(emb))[:, :, None, None]
        x = self.conv2(F.silu(self.norm2(x)))
        return x + skip


class Attention(nn.Module):
    """Multi-head attention: x (b n c), context (b m d) or None for self-attention -> (b n c).

    mask (n, m) bool: True where a token of x may attend to a token of the context. Raises
    ValueError unless heads divides channels.
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None = None) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"{channels} channels cannot be shared by {heads} heads; choose a divisor"
            )
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = zero_init(nn.Linear(channels, channels))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        context = x if context is None else context
        q = self._split_heads(self.to_q(x))
        k = self._split_heads(self.to_k(context))
        v = self._split_heads(self.to_v(context))
        # softmax(q k^T / sqrt(d)) v                                  Vaswani et al. 2017, eq. (1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(x, "b h n d -> b n (h d)"))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(b n c) -> (b heads n d), contiguous: otherwise the fast attention kernels are unused."""
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads).contiguous()


class SpatialAttention(nn.Module):
    """Self-attention among all positions of a frame: (b c h w) -> (b c h w)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        skip, h = x, x.shape[-2]
        x = rearrange(self.norm(x), "b c h w -> b (h w) c")
        x = rearrange(self.attention(x), "b (h w) c -> b c h w", h=h)
        return x + skip


class FeedForward(nn.Module):
    """Gated feed-forward layer (GEGLU, Shazeer 2020) on each token alone: (... c) -> (... c)."""

    def __init__(self, channels: int, mult: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(channels, 2 * mult * channels)
        self.down = zero_init(nn.Linear(mult * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        # (x W) * gelu(x V), projected back to c channels
        x, gate = self.up(x).chunk(2, dim=-1)
        return self.down(x * F.gelu(gate))


class Downsample(nn.Module):
    """Halve height and width: (b c_in h w) -> (b c_out h/2 w/2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: (b c_in h w) -> (b c_out 2h 2w)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
