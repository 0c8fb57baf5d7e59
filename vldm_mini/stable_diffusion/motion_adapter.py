"""AnimateDiff's motion modules as temporal layers of this package's interface.

Guo et al. 2023 (arXiv 2307.04725) is the best known descendant of the paper's section 4.2: an image
model that stays frozen, and attention over frames between its layers. `insert_motion` puts the
modules of a diffusers MotionAdapter into a UNet2DConditionModel, so that public weights run through
our VideoModel. Chapter 10 walks through it.

What differs from the paper's layers: they stand after whole spatial transformers, after residual
blocks only where a level has no attention; there is no mix; the group norm pools over all frames;
positions are a table of 32 frames; no text.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vldm_mini.blocks import zero_init
from vldm_mini.temporal import Clip, InsertionPoint, TemporalLayers, insert


class MotionModule(nn.Module):
    """One motion module: diffusers' AnimateDiffTransformer3D. (b c t h w) -> like it.

    heads, layers: of its attention; max_frames: length of its table of positions; groups: of its
    group norm. Fresh, it changes nothing. Raises ValueError for a clip of more frames than that.
    """

    def __init__(self, point: InsertionPoint, heads: int = 8, layers: int = 1, max_frames: int = 32,
                 groups: int = 32) -> None:
        super().__init__()
        from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
        self.max_frames = max_frames
        self.module = AnimateDiffTransformer3D(
            num_attention_heads=heads, attention_head_dim=point.channels // heads,
            in_channels=point.channels, num_layers=layers, norm_num_groups=groups,
            positional_embeddings="sinusoidal", num_positional_embeddings=max_frames)
        zero_init(self.module.proj_out)

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        if clip.frames > self.max_frames:
            raise ValueError(f"these motion modules know the positions of {self.max_frames} frames "
                             f"and the clip has {clip.frames}: sample fewer frames")
        frames = self.module(rearrange(z, "b c t h w -> (b t) c h w"), num_frames=clip.frames)
        return rearrange(frames, "(b t) c h w -> b c t h w", t=clip.frames)


class NoMix(nn.Module):
    """z' = layer(z): AnimateDiff has no alpha. A fixed alpha of one call still scales the layer."""

    def __init__(self, layer: nn.Module, point: InsertionPoint, alpha: float = 0.5,
                 per: str | int = "scalar") -> None:
        super().__init__()
        self.layer, self.fixed_alpha = layer, None

    @property
    def alpha(self) -> Tensor:
        """0, or what was fixed."""
        return torch.tensor(0.0 if self.fixed_alpha is None else self.fixed_alpha)

    def forward(self, z: Tensor, clip: Clip) -> Tensor:
        if clip.image:
            return z
        alpha = self.fixed_alpha if clip.alpha is None else clip.alpha
        z_t = self.layer(z, clip)
        return z_t if alpha is None else z + (1 - alpha) * (z_t - z)


def insert_motion(unet: nn.Module, adapter: nn.Module) -> TemporalLayers:
    """Put the motion modules of a diffusers MotionAdapter into a UNet2DConditionModel.

    VideoModel(unet, insert_motion(unet, adapter)) computes what diffusers' UNetMotionModel does.
    -> TemporalLayers. Raises ValueError for an adapter whose blocks do not fit this U-Net, and for
    one that changes the U-Net's input (PIA).
    """
    config = adapter.config
    if config.get("conv_in_channels"):
        raise ValueError(f"this adapter takes {config['conv_in_channels']} input channels (PIA): "
                         "its U-Net is another one, not an image model that stays as it is")
    modules = _names(unet, adapter)
    make = dict(layer=MotionModule, heads=_one(config, "motion_num_attention_heads"),
                layers=_one(config, "motion_transformer_layers_per_block"),
                max_frames=config["motion_max_seq_length"], groups=config["motion_norm_num_groups"])
    layers = insert(unet, conv=make, attention=None, transformer=make, mix=NoMix,
                    where=list(modules))
    for name, theirs in modules.items():
        ours = layers.mixes[name.replace(".", "-")].layer.module
        _same_widths(ours, theirs, name)
        ours.load_state_dict(theirs.state_dict())
    return layers


def motion_adapter(layers: TemporalLayers, unet: nn.Module) -> nn.Module:
    """The MotionAdapter of motion modules in a U-Net: the way back, for diffusers' pipelines.

    Raises ValueError for other temporal layers.
    """
    from diffusers import MotionAdapter
    first = next(iter(layers.mixes.values())).layer
    if not isinstance(first, MotionModule):
        raise ValueError(f"these layers are {type(first).__name__}s, not motion modules")
    hyperparameters = layers.settings["hyperparameters"]["transformer"]
    adapter = MotionAdapter(
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=unet.config.layers_per_block,
        motion_transformer_layers_per_block=hyperparameters["layers"],
        motion_transformer_layers_per_mid_block=hyperparameters["layers"],
        motion_num_attention_heads=hyperparameters["heads"],
        motion_norm_num_groups=hyperparameters["groups"],
        motion_max_seq_length=hyperparameters["max_frames"],
        use_motion_mid_block=any(name.startswith("mid") for name in layers.mixes))
    for name, theirs in _names(unet, adapter).items():
        ours = layers.mixes[name.replace(".", "-")].layer.module
        theirs.load_state_dict(ours.state_dict())
    like = first.module.proj_in.weight
    return adapter if like.dtype == adapter.dtype else adapter.to(like.dtype)


def _names(unet: nn.Module, adapter: nn.Module) -> dict[str, nn.Module]:
    """{name of the spatial layer that it follows: motion module}."""
    found = {}
    for part in ("down_blocks", "up_blocks"):
        blocks, theirs = getattr(unet, part), getattr(adapter, part)
        if len(blocks) != len(theirs):
            raise ValueError(f"the adapter has {len(theirs)} {part} and the U-Net {len(blocks)}: "
                             "it was made for another model")
        for number, (block, motion) in enumerate(zip(blocks, theirs)):
            kind = "attentions" if hasattr(block, "attentions") else "resnets"
            if len(getattr(block, kind)) != len(motion.motion_modules):
                raise ValueError(f"{part}.{number} of the U-Net has {len(getattr(block, kind))} "
                                 f"layers and the adapter {len(motion.motion_modules)}: it was "
                                 "made for another model")
            for at, module in enumerate(motion.motion_modules):
                found[f"{part}.{number}.{kind}.{at}"] = module
    if adapter.mid_block is not None:
        for at, module in enumerate(adapter.mid_block.motion_modules):
            found[f"mid_block.attentions.{at}"] = module
    return found


def _one(config: Any, name: str) -> int:
    """A number of the adapter's config that is the same in all blocks."""
    value = config[name]
    values = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(values) != 1:
        raise ValueError(f"{name} differs by block, {value}: such adapters are not supported")
    return values.pop()


def _same_widths(ours: nn.Module, theirs: nn.Module, name: str) -> None:
    have, want = ours.proj_in.weight.shape[1], theirs.proj_in.weight.shape[1]
    if have != want:
        raise ValueError(f"{name} of the U-Net has {have} channels and the adapter {want}: it was "
                         "made for another model")
