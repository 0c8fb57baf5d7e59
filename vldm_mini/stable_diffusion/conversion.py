"""The same temporal layers in a diffusers U-Net: Stable Diffusion turned into a video model.

Paper: section 4.2. Chapter 10 walks through it. `temporal.insert(unet,
text_channels=unet.config.cross_attention_dim)` puts fresh temporal layers into a
`UNet2DConditionModel`. `from_spatio_temporal` takes a spatio-temporal U-Net of diffusers (Stable
Video Diffusion's class) apart into an image model theta and our temporal layers phi, which together
are the same function.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vldm_mini.temporal import TemporalAttention, TemporalConv, TemporalLayers, insert

BLOCKS = {"CrossAttnDownBlockSpatioTemporal": "CrossAttnDownBlock2D",
          "DownBlockSpatioTemporal": "DownBlock2D",
          "CrossAttnUpBlockSpatioTemporal": "CrossAttnUpBlock2D",
          "UpBlockSpatioTemporal": "UpBlock2D"}
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
        _copy_mix(mix, unet, name.replace("-", "."))
    return backbone, layers.to(unet.dtype)


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


def _added_embedding(unet, added_time_ids):
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


def _copy_mix(mix, unet, name):
    """Fill one of our layers from its counterpart behind the spatial layer `name`."""
    if isinstance(mix.layer, TemporalConv):
        block = unet.get_submodule(name)
        copy_conv(mix.layer, block.temporal_res_block)
    else:
        parent, index = name.split(".transformer_blocks.")
        block = unet.get_submodule(parent)
        theirs = block.temporal_transformer_blocks[int(index)]
        copy_attention(mix.layer, theirs, block.time_pos_embed)
    # alpha = sigmoid(mix), of the spatial branch in both
    mix.mix.data.copy_(block.time_mixer.mix_factor.squeeze())


def copy_conv(ours: TemporalConv, theirs: nn.Module) -> None:
    """Weights and eps of a diffusers TemporalResnetBlock into our TemporalConv."""
    _copy((ours.norm1, theirs.norm1), (ours.conv1, theirs.conv1),
          (ours.emb, theirs.time_emb_proj), (ours.norm2, theirs.norm2), (ours.conv2, theirs.conv2))


def copy_attention(ours: TemporalAttention, theirs: nn.Module, position: nn.Module) -> None:
    """Weights of a diffusers TemporalBasicTransformerBlock and its time_pos_embed into ours."""
    _copy((ours.position[0], position.linear_1), (ours.position[2], position.linear_2),
          (ours.norm_in, theirs.norm_in), (ours.norm_time, theirs.norm1),
          (ours.norm_out, theirs.norm3))
    for mine, other in ((ours.ff_in, theirs.ff_in), (ours.ff_out, theirs.ff)):
        _copy((mine.up, other.net[0].proj), (mine.down, other.net[2]))
    attentions = [(ours.time, theirs.attn1)]
    if theirs.attn2 is not None:
        _copy((ours.norm_text, theirs.norm2))
        attentions.append((ours.text, theirs.attn2))
    for mine, other in attentions:
        _copy((mine.to_q, other.to_q), (mine.to_k, other.to_k), (mine.to_v, other.to_v),
              (mine.to_out, other.to_out[0]))


def _copy(*pairs):
    for mine, other in pairs:
        if other is None:
            continue
        mine.load_state_dict(other.state_dict())
        if hasattr(other, "eps"):
            mine.eps = other.eps
