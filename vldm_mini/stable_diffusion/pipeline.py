"""Any pipeline of diffusers that has a U-Net, as a video pipeline.

Paper: section 4.2. Frames of a clip are images of one batch for everything but the temporal
layers. A Stable Diffusion pipeline that is asked for T images of a prompt therefore samples a video
as soon as its U-Net treats these T images as the frames of one clip, and that is all that
`VideoPipeline` adds: schedulers, guidance, prompts, callbacks, offloading and adapters are those of
diffusers. Chapter 10 walks through it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vldm_mini.context import context_condition
from vldm_mini.temporal import Clip, TemporalLayers, band, insert

from .checkpoints import load_adapter, load_pipeline
from .motion_adapter import insert_motion

OWN = ("pipe", "layers", "decoder")    # attributes of a VideoPipeline; all others are diffusers'
TEMPORAL = "temporal"                  # folder of the temporal layers, inside that of a pipeline


@dataclass
class VideoOutput:
    """What a call returns: `frames[i]` is video i, as diffusers' video pipelines return it.

    A list of PIL images, numpy (t h w 3) or a tensor (t 3 h w) with values in [0, 1], or latents
    (t c h w), by output_type. nsfw_content_detected: what a safety checker says of each frame.
    """

    frames: Any
    nsfw_content_detected: list[list[bool]] | None = None


@contextmanager
def frames_of_clips(unet: nn.Module, layers: TemporalLayers, frames: int,
                    text: Tensor | None = None, context: Tensor | None = None,
                    **clip: Any) -> Iterator[None]:
    """Inside, each call of a diffusers U-Net with images ((k b t) c h w) is one of clips.

    frames: t. text: (b l d) or (2b l d), negative prompts first, for the temporal layers; None: the
    text of the spatial layers. context (b c+1 t h w): c_S. clip: mask, alpha, image (see Clip). k
    is 2 under classifier-free guidance. The layers follow the U-Net to the device that it runs on.
    """
    entered = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        z = args[0] if args else kwargs["sample"]
        clips = len(z) // frames
        states = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        tokens = text if text is not None else states
        here = next(layers.parameters()).device
        if here != z.device:
            layers.to(z.device)
        fields = dict(clip)
        if tokens is not None and layers.settings["options"].get("text_channels"):
            fields["text"] = _of_clips(tokens.to(z), clips, frames)
        if context is not None:
            fields["context"] = _of_clips(context.to(z), clips, frames)
        if fields.get("mask") is not None:
            fields["mask"] = fields["mask"].to(z.device)
        clip_now = Clip(frames, **fields)
        layers.accept(clip_now, clips)
        running = layers.running(clip_now)
        running.__enter__()
        entered.append(running)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        while entered:
            entered.pop().__exit__(None, None, None)

    hooks = [unet.register_forward_pre_hook(enter, with_kwargs=True),
             unet.register_forward_hook(leave, with_kwargs=True, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        leave(unet, (), {}, None)


def _of_clips(value: Tensor, clips: int, frames: int) -> Tensor:
    """(b ...) for each clip, ((b t) ...) for each of their frames, or one half of it -> (b ...)."""
    if len(value) == clips * frames and frames > 1:
        return value[::frames]
    if 2 * len(value) == clips:                       # the same with and without guidance
        return torch.cat([value, value])
    return value


class VideoPipeline:
    """A diffusers pipeline and temporal layers in its U-Net: it generates videos.

    pipe: StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusionUpscalePipeline,
    StableDiffusionControlNetPipeline, ... layers: TemporalLayers, inserted into pipe.unet. decoder:
    a module that decodes latents (b t c h w) to videos (b t 3 h w) in [-1, 1], such as
    StableVideoDecoder; None: the pipeline's own autoencoder, frame by frame.

    Whatever is not defined here is the pipeline's: `scheduler`, `enable_model_cpu_offload()`,
    `load_lora_weights(...)`. Raises ValueError for layers of another U-Net.
    """

    def __init__(self, pipe: Any, layers: TemporalLayers, decoder: nn.Module | None = None) -> None:
        if not hasattr(pipe, "unet"):
            raise ValueError(f"{type(pipe).__name__} has no U-Net: "
                             "give a Stable Diffusion pipeline")
        if not layers.hang_on(pipe.unet):
            raise ValueError("these temporal layers are not inserted into the pipeline's U-Net: "
                             "use insert(pipe.unet, ...)")
        self.pipe, self.layers, self.decoder = pipe, layers, decoder

    @classmethod
    def from_pretrained(cls, name: str | Path, temporal: str | Path | None = None,
                        motion_adapter: str | Path | None = None, **options: Any) -> VideoPipeline:
        """A pipeline by its name on the Hugging Face hub, or from a folder.

        temporal: folder of temporal layers (default: the folder `temporal` of the pipeline, where
        there is one; else fresh layers, which change nothing). motion_adapter: an AnimateDiff
        adapter by name or folder, in place of them. options: go to diffusers (torch_dtype,
        variant). Raises FileNotFoundError, ValueError, OSError (no network) saying what to do.
        """
        pipe = load_pipeline(name, **options)
        inside = Path(name) / TEMPORAL
        if motion_adapter is not None:
            dtype = {"torch_dtype": pipe.unet.dtype}
            layers = insert_motion(pipe.unet, load_adapter(motion_adapter, **dtype))
        elif temporal is not None or inside.is_dir():
            layers = TemporalLayers.from_pretrained(temporal or inside, pipe.unet)
        else:
            layers = insert(pipe.unet, text_channels=pipe.unet.config.cross_attention_dim)
        return cls(pipe, layers.eval())

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """The pipeline as diffusers saves it, which loads it without this package, and the temporal
        layers in a folder beside its parts. options: go to diffusers."""
        self.pipe.save_pretrained(folder, **options)
        self.layers.save_pretrained(Path(folder) / TEMPORAL, dtype=self.pipe.unet.dtype)

    def __getattr__(self, name: str) -> Any:
        if name in OWN:
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.pipe, name, value)

    def to(self, *args: Any, **kwargs: Any) -> VideoPipeline:
        """Device and number format, of everything."""
        self.pipe.to(*args, **kwargs)
        for module in (self.layers, self.decoder):
            if module is not None:
                module.to(self.pipe.unet.device, self.pipe.unet.dtype)
        return self

    @torch.no_grad()
    def __call__(self, prompt: str | Sequence[str] | None = None, num_frames: int = 8, *,
                 temporal_prompt_embeds: Tensor | None = None, alpha: float | None = None,
                 image_mode: bool = False, reach: int | None = None,
                 context: Tensor | None = None, context_mask: Tensor | None = None,
                 decode_chunk_size: int | None = None, output_type: str = "pil",
                 latents: Tensor | None = None, return_dict: bool = True,
                 **options: Any) -> VideoOutput | tuple:
        """One video of num_frames frames for each prompt.

        prompt: a text, or b of them. temporal_prompt_embeds (b l d) or (2b l d): another text for
        the temporal layers. alpha: one fixed mix; image_mode: without temporal layers, T images.
        reach: each frame attends to this many on either side (paper, appendix D), for more frames
        than trained. context (b t 3 h w) in [-1, 1] and context_mask (t,), 1 on known frames: c_S,
        for layers with context_channels. decode_chunk_size: frames decoded at a time. latents
        (b t c h w). options: go to the pipeline; of `prompt_embeds` (b t l d) each frame has its
        own, and an `image` (b t 3 h w) is a video.

        The random numbers are those of `num_images_per_prompt=num_frames`: in image mode, and with
        fresh layers, the frames are the pipeline's images, exactly. Raises ValueError.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; a video has at least one frame")
        call = self._inputs(prompt, num_frames, latents, options)
        known = self._context(context, context_mask, num_frames)
        mask = None if reach is None else band(num_frames, reach)
        home = next(self.layers.parameters()).device
        with frames_of_clips(self.pipe.unet, self.layers, num_frames, temporal_prompt_embeds, known,
                             mask=mask, alpha=alpha, image=image_mode):
            z = self.pipe(**call, output_type="latent", return_dict=False)[0]
        self.layers.to(home)
        z = rearrange(z, "(b t) c h w -> b t c h w", t=num_frames)
        frames, nsfw = self._finish(z, decode_chunk_size, output_type)
        self.pipe.maybe_free_model_hooks()
        return VideoOutput(frames, nsfw) if return_dict else (frames, nsfw)

    def _inputs(self, prompt: Any, t: int, latents: Tensor | None, options: dict) -> dict:
        """The keyword arguments of the image pipeline's call: T images of each prompt."""
        call = dict(options)
        accepted = inspect.signature(self.pipe.__call__).parameters
        unknown = sorted(call.keys() - accepted.keys())
        if unknown and "kwargs" not in accepted:
            raise ValueError(f"{type(self.pipe).__name__} takes no {', '.join(unknown)}")
        if "num_images_per_prompt" in call:
            raise ValueError("num_images_per_prompt is the number of frames here: give num_frames, "
                             "and a list of prompts for several videos")
        if latents is not None:
            if latents.ndim != 5 or latents.shape[1] != t:
                raise ValueError(f"latents are (b, t, c, h, w) with t = {t}, "
                                 f"got {tuple(latents.shape)}")
            call["latents"] = rearrange(latents, "b t c h w -> (b t) c h w")
        for_frames = False
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            value = call.get(name)
            if torch.is_tensor(value) and value.ndim == 4:
                call[name], for_frames = rearrange(value, "b t l d -> (b t) l d"), True
        video = call.get("image")
        if torch.is_tensor(video) and video.ndim == 5:
            call["image"] = rearrange(video, "b t c h w -> (b t) c h w")
            prompt = [prompt] if isinstance(prompt, str) else prompt
            prompt = [text for text in prompt for _ in range(t)]
            for_frames = True
        if prompt is not None:
            call["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
            if isinstance(call.get("negative_prompt"), str) and not isinstance(prompt, str):
                call["negative_prompt"] = [call["negative_prompt"]] * len(call["prompt"])
        return call | {"num_images_per_prompt": 1 if for_frames else t}

    def _context(self, video: Tensor | None, mask: Tensor | None, t: int) -> Tensor | None:
        """c_S (b c+1 t h w) of known frames."""
        if video is None:
            return None
        if mask is None or mask.shape != (t,) or video.ndim != 5 or video.shape[1] != t:
            raise ValueError(f"context is a video (b, {t}, 3, h, w), of which context_mask ({t},) "
                             "says which frames are known")
        vae = self.pipe.vae
        pixels = rearrange(video, "b t c h w -> (b t) c h w").to(vae.device, vae.dtype)
        z = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        z = rearrange(z, "(b t) c h w -> b t c h w", t=t)
        return context_condition(z, repeat(mask, "t -> b t", b=len(z)))

    def _finish(self, z: Tensor, chunk: int | None, output_type: str) -> tuple[Any, Any]:
        """Latents (b t c h w) -> videos in the format that was asked for."""
        if output_type == "latent":
            return z, None
        processor = self.pipe.image_processor
        videos, flags = [], []
        for clip in z:
            images, nsfw = self.decode(clip[None], chunk)[0], None
            if getattr(self.pipe, "safety_checker", None) is not None:
                images, nsfw = self.pipe.run_safety_checker(images, images.device, images.dtype)
            flags.append(nsfw)
            # float32: numpy and PIL know no bfloat16
            videos.append(processor.postprocess(images.float(), output_type=output_type))
        if output_type == "pt":
            videos = torch.stack(videos)
        return videos, None if flags[0] is None else flags

    @torch.no_grad()
    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        """Latents (b t c h w) -> videos (b t 3 h w), roughly in [-1, 1], `chunk` frames at a time.

        MINI: chunks do not overlap; a temporal decoder then joins them without a transition.
        """
        if self.decoder is not None:
            parts = z.split(chunk or z.shape[1], dim=1)
            return torch.cat([self.decoder(part) for part in parts], dim=1)
        vae = self.pipe.vae
        frames = rearrange(z, "b t c h w -> (b t) c h w").to(vae.dtype) / vae.config.scaling_factor
        parts = [vae.decode(part, return_dict=False)[0]
                 for part in frames.split(chunk or len(frames))]
        return rearrange(torch.cat(parts), "(b t) c h w -> b t c h w", t=z.shape[1])


def interpolated_prompts(pipe: Any, first: str, last: str, frames: int) -> Tensor:
    """The text of each frame, from one prompt to another -> prompt_embeds (1 t l d).

    MINI: linear interpolation of both embeddings (section 4.2 shows such videos).
    """
    encode: Callable = pipe.encode_prompt
    with torch.no_grad():
        ends = [encode(text, pipe.unet.device, 1, False)[0] for text in (first, last)]
    share = torch.linspace(0, 1, frames, device=ends[0].device, dtype=ends[0].dtype)
    return ends[0].lerp(ends[1], share[:, None, None])[None]
