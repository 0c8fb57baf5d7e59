"""The same temporal layers in a diffusers U-Net: Stable Diffusion turned into a video model.

Paper: section 4.2. Chapter 10 walks through it. `temporal.insert(unet,
text_channels=unet.config.cross_attention_dim)` puts fresh temporal layers into a
`UNet2DConditionModel`. `from_spatio_temporal` takes a spatio-temporal U-Net of diffusers (Stable
Video Diffusion's class) apart into an image model theta and our temporal layers phi, which together
are the same function; `to_spatio_temporal` puts them together again. `temporal_decoder` does the
same with its autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vldm_mini.temporal import TemporalAttention, TemporalConv, TemporalLayers, insert

BLOCKS = {"CrossAttnDownBlockSpatioTemporal": "CrossAttnDownBlock2D",
          "DownBlockSpatioTemporal": "DownBlock2D",
          "CrossAttnUpBlockSpatioTemporal": "CrossAttnUpBlock2D",
          "UpBlockSpatioTemporal": "UpBlock2D"}
INVERSE = {image: video for video, image in BLOCKS.items()}
SHARED = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block",
          "cross_attention_dim", "transformer_layers_per_block")
TEMPORAL = ("temporal_res_block", "temporal_transformer_blocks", "time_mixer", "time_pos_embed")


def from_spatio_temporal(unet: nn.Module, added_time_ids: Sequence[float] | None = None,
                         ) -> tuple[nn.Module, TemporalLayers]:
    """A UNetSpatioTemporalConditionModel -> (UNet2DConditionModel theta, TemporalLayers phi in it).

    VideoModel(theta, phi)(z, tau, encoder_hidden_states=text) equals unet(z, tau, text,
    added_time_ids) up to rounding. added_time_ids: (n,) numbers, Stable Video Diffusion's frame
    rate, motion and noise; may be left out where the embedding of them ends in zeros. Raises
    ValueError for another class, or where they are needed and not given.
    """
    if type(unet).__name__ != "UNetSpatioTemporalConditionModel":
        raise ValueError("from_spatio_temporal takes diffusers' UNetSpatioTemporalConditionModel, "
                         f"not a {type(unet).__name__}; temporal layers for an image U-Net come "
                         "from temporal.insert")
    width = unet.config.cross_attention_dim
    if not isinstance(width, int):
        raise ValueError("our temporal layers take one width of text; this U-Net has several, "
                         f"{tuple(width)}")
    backbone = image_backbone(unet, added_time_ids)
    layers = insert(backbone, text_channels=width)
    for name, mix in layers.mixes.items():
        _copy_mix(mix, unet, name.replace("-", "."), copy_ours)
    return backbone, layers.to(unet.dtype)


@torch.no_grad()
def to_spatio_temporal(backbone: nn.Module, layers: TemporalLayers) -> nn.Module:
    """The way back: theta and phi -> a UNetSpatioTemporalConditionModel that is the same function.

    What its added_time_ids add is zero: their part is in the bias of theta's embedding of tau.
    Raises ValueError for temporal layers that are not after every spatial layer, or are no
    TemporalConv and TemporalAttention with scalar mixes.
    """
    from diffusers import UNetSpatioTemporalConditionModel
    config = backbone.config
    theirs = UNetSpatioTemporalConditionModel(
        down_block_types=tuple(INVERSE[name] for name in config.down_block_types),
        up_block_types=tuple(INVERSE[name] for name in config.up_block_types),
        num_attention_heads=config.attention_head_dim,
        **{key: config[key] for key in SHARED})
    if theirs.dtype != backbone.dtype:
        theirs = theirs.to(backbone.dtype)
    wanted = [name for name, module in theirs.named_modules() if hasattr(module, "time_mixer")]
    if len(wanted) != len({name.partition("-transformer_blocks")[0] for name in layers.mixes}):
        raise ValueError(f"a spatio-temporal U-Net has temporal layers after all {len(wanted)} "
                         "spatial ones: insert them with where=None")
    state = theirs.state_dict()
    for key, value in backbone.state_dict().items():
        res_block = key.replace(".norm1", ".spatial_res_block.norm1")
        for part in ("norm2", "conv1", "conv2", "time_emb_proj", "conv_shortcut"):
            res_block = res_block.replace(f".{part}.", f".spatial_res_block.{part}.")
        state[res_block if ".resnets." in key else key].copy_(value)
    for module in (theirs.add_embedding.linear_2.weight, theirs.add_embedding.linear_2.bias):
        module.zero_()
    copy_eps(backbone, theirs)
    for name, mix in layers.mixes.items():
        _copy_mix(mix, theirs, name.replace("-", "."), copy_theirs)
    return theirs.train(backbone.training)


def copy_eps(backbone: nn.Module, theirs: nn.Module) -> None:
    """Group norms' eps of the image backbone into the spatial half of a spatio-temporal U-Net."""
    modules = dict(backbone.named_modules())
    for name, module in theirs.named_modules():
        own = modules.get(name.replace(".spatial_res_block", ""))
        if isinstance(module, nn.GroupNorm) and own is not None:
            module.eps = own.eps


@torch.no_grad()
def image_backbone(unet: nn.Module, added_time_ids: Sequence[float] | None = None) -> nn.Module:
    """The spatial half of a UNetSpatioTemporalConditionModel, as a UNet2DConditionModel."""
    from diffusers import UNet2DConditionModel
    cfg = unet.config
    backbone = UNet2DConditionModel(
        down_block_types=[BLOCKS[name] for name in cfg.down_block_types],
        up_block_types=[BLOCKS[name] for name in cfg.up_block_types],
        attention_head_dim=cfg.num_attention_heads,      # diffusers' old misnomer: it counts heads
        use_linear_projection=True, **{key: cfg[key] for key in SHARED}).to(unet.device)
    backbone = backbone if unet.dtype == torch.float32 else backbone.to(unet.dtype)
    other = ("add_embedding", *TEMPORAL)
    backbone.load_state_dict({
        key.replace(".spatial_res_block", ""): value for key, value in unet.state_dict().items()
        if not any(part in key for part in other)})
    # eps of a group norm is 1e-6 in some blocks there and 1e-5 in others: copied one by one
    eps = {name.replace(".spatial_res_block", ""): module.eps
           for name, module in unet.named_modules() if hasattr(module, "eps")}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = eps[name]
    backbone.time_embedding.linear_2.bias += _added_embedding(unet, added_time_ids)
    return backbone.train(unet.training)


def _added_embedding(unet: nn.Module, added_time_ids: Sequence[float] | None) -> torch.Tensor:
    """What the time ids add to every embedding of tau.

    MINI: one setting for all clips, added to a bias, so that the image model keeps Stable
    Diffusion's keys.
    """
    last = unet.add_embedding.linear_2
    if added_time_ids is None:
        if last.weight.any() or last.bias.any():
            raise ValueError("this U-Net is conditioned on added_time_ids (frame rate, motion, "
                             "noise): give the numbers that it is to be used with, for instance "
                             "added_time_ids=(6, 127, 0.02)")
        return torch.zeros_like(last.bias)
    ids = torch.as_tensor(added_time_ids, device=unet.device).flatten()
    # emb = time_embedding(tau) + add_embedding([cos, sin] of each id)
    return unet.add_embedding(unet.add_time_proj(ids).reshape(1, -1).to(unet.dtype))[0]


def _copy_mix(mix: nn.Module, unet: nn.Module, name: str, copy: Callable) -> None:
    """One of our layers and its counterpart behind the spatial layer `name`: copy(ours, theirs)."""
    if isinstance(mix.layer, TemporalConv):
        block = unet.get_submodule(name)
        copy_conv(mix.layer, block.temporal_res_block, copy)
    elif isinstance(mix.layer, TemporalAttention):
        parent, index = name.split(".transformer_blocks.")
        block = unet.get_submodule(parent)
        theirs = block.temporal_transformer_blocks[int(index)]
        copy_attention(mix.layer, theirs, block.time_pos_embed, copy)
    else:
        raise ValueError(f"{name} has a {type(mix.layer).__name__}; diffusers has counterparts of "
                         "TemporalConv and TemporalAttention only")
    # alpha = sigmoid(mix), of the spatial branch in both
    copy((mix.mix, block.time_mixer.mix_factor))


def copy_conv(ours: TemporalConv, theirs: nn.Module, copy: Callable | None = None) -> None:
    """Weights and eps of a diffusers TemporalResnetBlock into our TemporalConv."""
    copy = copy or copy_ours
    copy((ours.norm1, theirs.norm1), (ours.conv1, theirs.conv1),
          (ours.emb, theirs.time_emb_proj), (ours.norm2, theirs.norm2), (ours.conv2, theirs.conv2))


def copy_attention(ours: TemporalAttention, theirs: nn.Module, position: nn.Module,
                   copy: Callable | None = None) -> None:
    """Weights of a diffusers TemporalBasicTransformerBlock and its time_pos_embed into ours."""
    copy = copy or copy_ours
    copy((ours.position[0], position.linear_1), (ours.position[2], position.linear_2),
          (ours.norm_in, theirs.norm_in), (ours.norm_time, theirs.norm1),
          (ours.norm_out, theirs.norm3))
    for mine, other in ((ours.ff_in, theirs.ff_in), (ours.ff_out, theirs.ff)):
        copy((mine.up, other.net[0].proj), (mine.down, other.net[2]))
    attentions = [(ours.time, theirs.attn1)]
    if theirs.attn2 is not None:
        copy((ours.norm_text, theirs.norm2))
        attentions.append((ours.text, theirs.attn2))
    for mine, other in attentions:
        copy((mine.to_q, other.to_q), (mine.to_k, other.to_k), (mine.to_v, other.to_v),
              (mine.to_out, other.to_out[0]))


def copy_ours(*pairs: tuple[Any, Any]) -> None:
    """Of each pair (ours, theirs): weights and eps of theirs into ours. None is left out."""
    for mine, other in pairs:
        _fill(mine, other)


def copy_theirs(*pairs: tuple[Any, Any]) -> None:
    """Of each pair (ours, theirs): weights and eps of ours into theirs. None is left out."""
    for mine, other in pairs:
        _fill(other, mine)


@torch.no_grad()
def _fill(target: Any, source: Any) -> None:
    if source is None or target is None:
        return
    if isinstance(source, nn.Module):
        target.load_state_dict(source.state_dict())
        if hasattr(source, "eps"):
            target.eps = source.eps
    else:
        target.copy_(source.reshape(target.shape))
