"""The temporal decoder of Stable Video Diffusion, taken apart and put together again.

Paper: section 3.1.1. diffusers' AutoencoderKLTemporalDecoder is an image autoencoder with temporal
layers in its decoder and one more convolution over the decoded frames. Chapter 10 walks through it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn

from vldm_mini.temporal import TemporalLayers, VideoModel, insert

from .conversion import TEMPORAL, copy_conv, copy_eps, copy_ours, copy_theirs


class StableVideoDecoder(nn.Module):
    """Latents (b t c h w), as diffusion uses them -> videos (b t 3 fh fw), roughly in [-1, 1].

    autoencoder: diffusers' AutoencoderKL. layers: TemporalLayers in its decoder, or None: frame by
    frame. last: a convolution over the decoded frames, Stable Video Diffusion's, or None.
    """

    def __init__(self, autoencoder: nn.Module, layers: TemporalLayers | None = None,
                 last: nn.Conv3d | None = None) -> None:
        super().__init__()
        self.autoencoder, self.layers, self.last = autoencoder, layers, last
        self.net = VideoModel(autoencoder.decoder, layers) if layers else None

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = z / self.autoencoder.config.scaling_factor
        frames = rearrange(z, "b t c h w -> (b t) c h w")
        if self.autoencoder.post_quant_conv is not None:
            frames = self.autoencoder.post_quant_conv(frames)
        if self.net is None:
            frames = self.autoencoder.decoder(frames)
            video = rearrange(frames, "(b t) c h w -> b t c h w", t=z.shape[1])
        else:
            video = self.net(rearrange(frames, "(b t) c h w -> b t c h w", t=z.shape[1]))
        if self.last is not None:
            video = self.last(video.transpose(1, 2)).transpose(1, 2)
        return video


@torch.no_grad()
def from_temporal_decoder(autoencoder: nn.Module) -> StableVideoDecoder:
    """An AutoencoderKLTemporalDecoder -> an image autoencoder with our temporal layers in it.

    Raises ValueError for another class, and for other than two layers a block: the middle of
    diffusers' two decoders then differs.
    """
    from diffusers import AutoencoderKL
    if type(autoencoder).__name__ != "AutoencoderKLTemporalDecoder":
        raise ValueError("from_temporal_decoder takes diffusers' AutoencoderKLTemporalDecoder, "
                         f"not a {type(autoencoder).__name__}")
    config = autoencoder.config
    if config.layers_per_block != 2:
        raise ValueError(f"layers_per_block is {config.layers_per_block}; an image decoder of "
                         "diffusers has two blocks in the middle, which two layers give")
    widths = config.block_out_channels
    image = AutoencoderKL(
        down_block_types=config.down_block_types, block_out_channels=widths,
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=config.layers_per_block, latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor, sample_size=config.sample_size,
        use_post_quant_conv=False)
    image.load_state_dict({key.replace(".spatial_res_block", ""): value
                           for key, value in autoencoder.state_dict().items()
                           if not any(part in key for part in (*TEMPORAL, "time_conv_out"))})
    copy_eps(autoencoder.decoder, image.decoder)
    layers = insert(image.decoder, attention=None)
    for name, mix in layers.mixes.items():
        _copy_decoder_mix(mix, autoencoder.decoder, name, copy_ours)
    last = nn.Conv3d(config.out_channels, config.out_channels, (3, 1, 1), padding=(1, 0, 0))
    last.load_state_dict(autoencoder.decoder.time_conv_out.state_dict())
    return StableVideoDecoder(image, layers, last).to(autoencoder.dtype).eval()


@torch.no_grad()
def to_temporal_decoder(decoder: StableVideoDecoder) -> nn.Module:
    """The way back: an AutoencoderKLTemporalDecoder that is the same function.

    Without a last convolution, its own passes frames on as they are. Raises ValueError for a
    decoder without temporal layers, and for an autoencoder with a post_quant_conv, which it has no
    counterpart of.
    """
    from diffusers import AutoencoderKLTemporalDecoder
    image = decoder.autoencoder
    if decoder.layers is None or image.post_quant_conv is not None:
        raise ValueError("an AutoencoderKLTemporalDecoder has temporal layers in its decoder and "
                         "no post_quant_conv")
    config = image.config
    theirs = AutoencoderKLTemporalDecoder(
        down_block_types=config.down_block_types, block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block, latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor, sample_size=config.sample_size)
    state = theirs.state_dict()
    for key, value in image.state_dict().items():
        inside = key.startswith("decoder.") and ".resnets." in key
        head, dot, rest = key.rpartition(".resnets.")
        number, _, rest = rest.partition(".")
        state[f"{head}{dot}{number}.spatial_res_block.{rest}" if inside else key].copy_(value)
    copy_eps(image.decoder, theirs.decoder)
    for name, mix in decoder.layers.mixes.items():
        _copy_decoder_mix(mix, theirs.decoder, name, copy_theirs)
    last = theirs.decoder.time_conv_out
    if decoder.last is not None:
        last.load_state_dict(decoder.last.state_dict())
    else:
        last.bias.zero_()
        nn.init.dirac_(last.weight)
    return theirs.to(image.dtype).eval() if theirs.dtype != image.dtype else theirs.eval()


def _copy_decoder_mix(mix: nn.Module, theirs: nn.Module, name: str, copy: Callable) -> None:
    """One of our layers and the temporal half of a SpatioTemporalResBlock: copy(ours, theirs)."""
    block = theirs.get_submodule(name.replace("-", "."))
    copy_conv(mix.layer, block.temporal_res_block, copy)
    # there, alpha = sigmoid(mix) is of the temporal branch: sigmoid(-mix) is ours
    ours = mix.mix.detach().clone()
    if copy is copy_ours:
        mix.mix.copy_(-block.time_mixer.mix_factor.squeeze())
    else:
        block.time_mixer.mix_factor.copy_(-ours.reshape(1))
