"""A Stable Diffusion of small width and random weights, in the layout of the real one."""

import torch

from vldm_mini.stable_diffusion.tokenizer import clip_tokenizer

TEXT = 16


def random_weights(module, seed=5, size=0.05):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=generator)
    return module


def unet(in_channels=4, **options):
    from diffusers import UNet2DConditionModel
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(32, 64),
        layers_per_block=1, cross_attention_dim=TEXT, attention_head_dim=2, **options).eval()


def text_encoder(vocabulary=514):
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(1)
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1)).eval()


def autoencoder():
    from diffusers import AutoencoderKL
    torch.manual_seed(2)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8).eval()


def pipeline():
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    pipe = StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text_encoder(), tokenizer=clip_tokenizer([]), unet=unet(),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear",
                                beta_start=0.00085, beta_end=0.012),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_xl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    torch.manual_seed(3)
    second = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=514, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=TEXT, bos_token_id=512, eos_token_id=513,
        pad_token_id=513)).eval()
    wide = unet(addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + TEXT)
    wide.register_to_config(cross_attention_dim=2 * TEXT)
    torch.manual_seed(0)
    wide = type(wide).from_config(wide.config).eval()
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(), text_encoder=text_encoder(), text_encoder_2=second,
        tokenizer=clip_tokenizer([]), tokenizer_2=clip_tokenizer([]), unet=wide,
        scheduler=EulerDiscreteScheduler(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_upscale():
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline
    pipe = StableDiffusionUpscalePipeline(
        vae=autoencoder(), text_encoder=text_encoder(), tokenizer=clip_tokenizer([]),
        unet=unet(in_channels=7, num_class_embeds=1000), low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(), max_noise_level=350)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_controlnet():
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
    plain = pipeline()
    torch.manual_seed(4)
    control = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(16, 32))
    random_weights(control)
    pipe = StableDiffusionControlNetPipeline(**plain.components, controlnet=control.eval(),
                                             requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
