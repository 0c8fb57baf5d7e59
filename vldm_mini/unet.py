"""The image backbone theta: a U-Net that denoises single frames. Sees `b c h w`, no time axis.

Paper: section 3.1 (the spatial layers l_theta), after Dhariwal & Nichol 2021. Chapter 03 trains it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    ChannelLayerNorm,
    Downsample,
    ResBlock,
    SpatialAttention,
    Upsample,
    group_norm,
    sinusoidal_embedding,
    zero_init,
)
from .diffusion import Schedule, ScheduleConfig, check_prediction
from .weights import Pretrained


@dataclass(frozen=True)
class UNetConfig:
    """Widths of a U-Net, and the diffusion process that it is trained for.

    `channels` and `attention` have one entry for each resolution, finest first. Raises ValueError
    if their lengths differ. A `schedule` read from JSON as a dictionary becomes a ScheduleConfig.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (64, 96, 128)
    attention: tuple[bool, ...] = (False, True, True)
    blocks: int = 1                      # residual blocks a resolution; one more on the way up
    head_channels: int = 32
    labels: tuple[int, ...] = ()         # number of classes of each label
    emb_channels: int = 256
    concat_channels: int = 0             # of a conditioning picture at the resolution of z; 0: none
    local: bool = False                  # norms over channels alone, for use at any size, in tiles
    prediction: str = "v"                # "eps", "v" or "x0"
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.attention):
            raise ValueError(
                f"channels and attention need one entry for each resolution, got "
                f"{self.channels} and {self.attention}"
            )
        if isinstance(self.schedule, dict):
            object.__setattr__(self, "schedule", ScheduleConfig(**self.schedule))


class UNet(Pretrained, nn.Module):
    """forward(z, tau, labels, concat) -> prediction: z (b in_channels h w) -> (b out_channels h w).

    tau: (b,) integers, or one for all. labels: (b, number of labels) integers; the number of
    classes of a label is its null label, and labels=None sets all of them to null. concat:
    (b concat_channels h w), concatenated to z; None is the same as zeros. h and w must be
    divisible by 2^(resolutions - 1).
    """

    config_class = UNetConfig

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config, c, emb = config, config.channels, config.emb_channels
        self._schedule = config.schedule.build()
        check_prediction(self._schedule, config.prediction)
        norm = ChannelLayerNorm if config.local else group_norm

        def res_block(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, emb, norm)

        def attention(level: int) -> SpatialAttention | None:
            if not config.attention[level]:
                return None
            return SpatialAttention(c[level], heads=max(1, c[level] // config.head_channels))

        self.time_embed = nn.Sequential(nn.Linear(c[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_embed = nn.ModuleList(nn.Embedding(n + 1, emb) for n in config.labels)
        self.conv_in = nn.Conv2d(config.in_channels + config.concat_channels, c[0], 3, padding=1)

        self.down, skips = nn.ModuleList(), [c[0]]
        for level in range(len(c)):
            for _ in range(config.blocks):
                self.down.append(Layer(res_block(skips[-1], c[level]), attention(level)))
                skips.append(c[level])
            if level + 1 < len(c):
                self.down.append(Layer(Downsample(c[level], c[level + 1])))
                skips.append(c[level + 1])

        self.mid = nn.ModuleList()
        self.mid.append(Layer(res_block(c[-1], c[-1]), attention(-1)))
        self.mid.append(Layer(res_block(c[-1], c[-1])))

        self.up, width = nn.ModuleList(), c[-1]
        for level in reversed(range(len(c))):
            for _ in range(config.blocks + 1):
                self.up.append(Layer(res_block(width + skips.pop(), c[level]), attention(level)))
                width = c[level]
            if level > 0:
                self.up.append(Layer(Upsample(c[level], c[level - 1])))
                width = c[level - 1]

        self.norm_out = norm(c[0])
        self.conv_out = zero_init(nn.Conv2d(c[0], config.out_channels, 3, padding=1))

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the config."""
        return self._schedule

    @property
    def prediction(self) -> str:
        """What the network predicts: "eps", "v" or "x0"."""
        return self.config.prediction

    def null_labels(self, b: int, device: torch.device | str | None = None) -> Tensor:
        """The labels of an unconditional call: (b, number of labels) long."""
        labels = torch.empty(b, len(self.config.labels), dtype=torch.long, device=device)
        for column, classes in enumerate(self.config.labels):
            labels[:, column].fill_(classes)
        return labels

    def embed(self, tau: Tensor, labels: Tensor | None) -> Tensor:
        """tau (b,), labels (b, n) or None -> the vector (b, emb) that every residual block takes.

        Raises ValueError for labels of another shape or, on the CPU, out of range. On an
        accelerator their range is not checked: the CPU would have to wait for it.
        """
        dtype = self.time_embed[0].weight.dtype
        emb = self.time_embed(sinusoidal_embedding(tau, self.config.channels[0], dtype=dtype))
        if labels is None:
            labels = self.null_labels(len(tau), tau.device)
        if labels.shape != (len(tau), len(self.config.labels)):
            raise ValueError(
                f"labels must be ({len(tau)}, {len(self.config.labels)}), got {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu":
            self._check_range(labels)
        # MINI: labels are embedded and added to the embedding of tau; the paper does not say how
        for table, label in zip(self.label_embed, labels.T):
            emb = emb + table(label)
        return emb

    def _check_range(self, labels: Tensor) -> None:
        null = self.null_labels(len(labels))
        if (labels < 0).any() or (labels > null).any():
            raise ValueError(
                f"labels lie in 0..n, n being the null label; n = {self.config.labels}, "
                f"got {labels.tolist()}"
            )

    def forward(
        self,
        z: Tensor,
        tau: Tensor,
        labels: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        factor = 2 ** (len(self.config.channels) - 1)
        fits = z.ndim == 4 and z.shape[1] == self.config.in_channels
        if not fits or z.shape[2] % factor or z.shape[3] % factor:
            raise ValueError(
                f"the U-Net takes (b, {self.config.in_channels}, h, w) with h and w divisible by "
                f"{factor}, got {tuple(z.shape)}"
            )
        shape = (len(z), self.config.concat_channels, *z.shape[2:])
        if concat is None:
            concat = z.new_zeros(shape)
        if concat.shape != shape:
            raise ValueError(f"concat must be {shape}, got {tuple(concat.shape)}")

        emb = self.embed(tau.expand(len(z)), labels)
        z = self.conv_in(torch.cat([z, concat], dim=1))
        skips = [z]
        for layer in self.down:
            z = layer(z, emb)
            skips.append(z)
        for layer in self.mid:
            z = layer(z, emb)
        for layer in self.up:
            if not isinstance(layer.block, Upsample):
                z = torch.cat([z, skips.pop()], dim=1)
            z = layer(z, emb)
        return self.conv_out(F.silu(self.norm_out(z)))


def add_input_channels(model: UNet, concat_channels: int) -> UNet:
    """A copy of a UNet that also takes a conditioning picture of so many channels.

    The new weights of its first convolution are zero: until they are trained, the copy outputs
    what `model` outputs, whatever the picture is.
    """
    wider = UNet(replace(model.config, concat_channels=concat_channels))
    tensors = dict(model.state_dict())
    weight = torch.zeros_like(wider.conv_in.weight)
    weight[:, : model.config.in_channels] = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = weight
    wider.load_state_dict(tensors)
    return wider


class Layer(nn.Module):
    """A residual block or a change of resolution, followed by attention if there is any."""

    def __init__(self, block: nn.Module, attention: SpatialAttention | None = None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, z: Tensor, emb: Tensor) -> Tensor:
        z = self.block(z, emb) if isinstance(self.block, ResBlock) else self.block(z)
        return z if self.attention is None else self.attention(z)
