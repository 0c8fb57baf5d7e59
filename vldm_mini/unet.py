"""The image backbone theta: a U-Net that denoises single frames. Sees `b c h w`; knows nothing of time.

Paper: section 3.1 (the spatial layers l_theta), after Dhariwal & Nichol 2021. Chapter 03 trains it.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import (
    Downsample,
    ChannelLayerNorm,
    ResBlock,
    SpatialAttention,
    Upsample,
    group_norm,
    sinusoidal_embedding,
    zero_init,
)
from .weights import Pretrained


@dataclass(frozen=True)
class UNetConfig:
    """`channels` and `attention`: one entry a resolution, finest first. `labels`: number of classes of each label.

    `concat_channels`: of a picture that the network is told beside z, at the same resolution; 0 for none.
    """
    in_channels: int = 4
    out_channels: int = 4
    channels: tuple = (64, 96, 128)
    attention: tuple = (False, True, True)
    blocks: int = 1                      # residual blocks a resolution on the way down; one more on the way up
    head_channels: int = 32
    labels: tuple = ()
    emb_channels: int = 256
    concat_channels: int = 0
    local: bool = False                  # norms that see their own place alone: for use at other sizes, in tiles


class UNet(Pretrained, nn.Module):
    """forward(z, tau, labels): z (b c h w), tau (b,), labels (b, number of labels) -> prediction (b c h w).

    concat (b concat_channels h w), where the network has such, is seen beside z; None is zeros: nothing is told.
    A label equal to its number of classes is the null label: "not told". labels=None tells nothing at all.
    h and w must be divisible by 2^(resolutions - 1).
    """
    config_class = UNetConfig

    def __init__(self, config=UNetConfig()):
        super().__init__()
        self.config, c, emb = config, config.channels, config.emb_channels
        norm = ChannelLayerNorm if config.local else group_norm
        res = lambda c_in, c_out: ResBlock(c_in, c_out, emb, norm)                                      # noqa: E731
        look = lambda i: (SpatialAttention(c[i], max(1, c[i] // config.head_channels))                  # noqa: E731
                          if config.attention[i] else None)
        self.time_embed = nn.Sequential(nn.Linear(c[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_embed = nn.ModuleList(nn.Embedding(n + 1, emb) for n in config.labels)
        self.conv_in = nn.Conv2d(config.in_channels + config.concat_channels, c[0], 3, padding=1)

        self.down, skips = nn.ModuleList(), [c[0]]
        for i in range(len(c)):
            for _ in range(config.blocks):
                self.down.append(Layer(res(skips[-1], c[i]), look(i)))
                skips.append(c[i])
            if i + 1 < len(c):
                self.down.append(Layer(Downsample(c[i], c[i + 1])))
                skips.append(c[i + 1])
        self.mid = nn.ModuleList([Layer(res(c[-1], c[-1]), look(-1)), Layer(res(c[-1], c[-1]))])
        self.up, width = nn.ModuleList(), c[-1]
        for i in reversed(range(len(c))):
            for _ in range(config.blocks + 1):
                self.up.append(Layer(res(width + skips.pop(), c[i]), look(i)))
                width = c[i]
            if i:
                self.up.append(Layer(Upsample(c[i], c[i - 1])))
                width = c[i - 1]
        self.norm_out = norm(c[0])
        self.conv_out = zero_init(nn.Conv2d(c[0], config.out_channels, 3, padding=1))

    def null_labels(self, b, device=None):
        """The labels that tell nothing. -> (b, number of labels)."""
        return torch.tensor(self.config.labels, device=device).long().expand(b, -1)

    def embed(self, tau, labels):
        """tau (b,), labels (b, n) or None -> one vector (b, emb) that every residual block gets."""
        emb = self.time_embed(sinusoidal_embedding(tau, self.config.channels[0]))
        labels = self.null_labels(len(tau), tau.device) if labels is None else labels
        if labels.shape != (len(tau), len(self.config.labels)):
            raise ValueError(f"labels must be ({len(tau)}, {len(self.config.labels)}), got {tuple(labels.shape)}")
        if (labels < 0).any() or (labels > self.null_labels(len(tau), labels.device)).any():
            raise ValueError(f"labels lie in 0..n, n being the null label; n = {self.config.labels}, "
                             f"got {labels.tolist()}")
        # MINI: labels are embedded and added to the embedding of tau; how the paper does it is not known
        for table, label in zip(self.label_embed, labels.T):
            emb = emb + table(label)
        return emb

    def forward(self, z, tau, labels=None, concat=None):
        factor = 2 ** (len(self.config.channels) - 1)
        if z.ndim != 4 or z.shape[1] != self.config.in_channels or z.shape[2] % factor or z.shape[3] % factor:
            raise ValueError(f"the U-Net takes (b, {self.config.in_channels}, h, w) with h and w divisible by "
                             f"{factor}, got {tuple(z.shape)}")
        emb = self.embed(tau.expand(len(z)), labels)
        shape = (len(z), self.config.concat_channels, *z.shape[2:])
        if concat is not None and concat.shape != shape:
            raise ValueError(f"concat must be {shape}, got {tuple(concat.shape)}")
        z = self.conv_in(torch.cat([z, z.new_zeros(shape) if concat is None else concat], dim=1))
        skips = [z]
        for layer in self.down:
            z = layer(z, emb)
            skips.append(z)
        for layer in self.mid:
            z = layer(z, emb)
        for layer in self.up:
            z = layer(z if isinstance(layer.block, Upsample) else torch.cat([z, skips.pop()], dim=1), emb)
        return self.conv_out(F.silu(self.norm_out(z)))


def add_input_channels(model, concat_channels):
    """A copy of a UNet that is also told a picture of so many channels, and does not listen to it yet: their weights
    are zero, so that its answers are those of `model`, whatever it is told."""
    wider = UNet(replace(model.config, concat_channels=concat_channels))
    tensors = dict(model.state_dict())
    fresh = torch.zeros_like(wider.conv_in.weight)
    fresh[:, :model.config.in_channels] = tensors["conv_in.weight"]
    wider.load_state_dict(tensors | {"conv_in.weight": fresh})
    return wider


class Layer(nn.Module):
    """A residual block (or a change of resolution) and, where there is one, the attention after it."""

    def __init__(self, block, attention=None):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, z, emb):
        z = self.block(z, emb) if isinstance(self.block, ResBlock) else self.block(z)
        return z if self.attention is None else self.attention(z)
