"""mini-sd: a Stable Diffusion of small width, built of diffusers' own classes.

Hub weights are gigabytes. This one has the same layout, so that all code that runs on it runs on
the real ones. Chapters 10 and 11 use it. MINI: frames of 64 x 64 in latents of 16 x 16 (f = 4, not
8), prediction of v, a noise schedule that ends in pure noise, and a text encoder that is trained
together with the U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vldm_mini.schedule import Schedule

from .tokenizer import clip_tokenizer

LENGTH = 77                        # tokens of a text, as Stable Diffusion's
BETAS = dict(beta_start=0.00085, beta_end=0.012)


@dataclass(frozen=True)
class MiniSize:
    """Widths and frames of mini-sd. pixels: side of a frame. stride: between frames of a clip."""

    pixels: int
    autoencoder: tuple[int, ...]
    unet: tuple[int, ...]
    text: int
    text_layers: int
    frames: int
    stride: int


SIZES = {
    "xs": MiniSize(32, (16, 16, 16), (32, 32), 16, 1, 3, 2),
    "s": MiniSize(64, (32, 64, 96), (64, 128, 192), 64, 3, 8, 3),
    "m": MiniSize(64, (64, 96, 128), (128, 192, 256), 128, 4, 8, 3),
}


def schedule() -> Schedule:
    """The noise schedule of mini-sd's scheduler, as the training losses use it."""
    return Schedule.scaled_linear(**BETAS).zero_terminal_snr()


def scheduler() -> Any:
    """diffusers' DDIMScheduler with that schedule, for v."""
    from diffusers import DDIMScheduler
    return DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction",
                         rescale_betas_zero_snr=True, timestep_spacing="trailing",
                         clip_sample=False, set_alpha_to_one=True, **BETAS)


def autoencoder(size: MiniSize) -> nn.Module:
    """AutoencoderKL of f = 2 ** (levels - 1), random weights."""
    from diffusers import AutoencoderKL
    levels = len(size.autoencoder)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=size.autoencoder,
        layers_per_block=1, norm_num_groups=16, sample_size=size.pixels)


def text_encoder(size: MiniSize, vocabulary: int) -> nn.Module:
    """CLIPTextModel, random weights; its last two tokens start and end a text."""
    from transformers import CLIPTextConfig, CLIPTextModel
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=size.text, intermediate_size=4 * size.text,
        num_hidden_layers=size.text_layers, num_attention_heads=max(1, size.text // 16),
        max_position_embeddings=LENGTH, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1))


def unet(size: MiniSize) -> nn.Module:
    """UNet2DConditionModel with attention to the text at every level, random weights."""
    from diffusers import UNet2DConditionModel
    levels = len(size.unet)
    return UNet2DConditionModel(
        sample_size=size.pixels // 2 ** (len(size.autoencoder) - 1),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels, block_out_channels=size.unet,
        layers_per_block=1, cross_attention_dim=size.text, attention_head_dim=4)


def pipeline(size: MiniSize, merges: list[tuple[str, str]], seed: int = 0) -> Any:
    """A StableDiffusionPipeline of random weights. merges: see `tokenizer`."""
    from diffusers import StableDiffusionPipeline
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(merges, LENGTH)
    return StableDiffusionPipeline(
        vae=autoencoder(size), text_encoder=text_encoder(size, len(tokenizer)),
        tokenizer=tokenizer, unet=unet(size), scheduler=scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
