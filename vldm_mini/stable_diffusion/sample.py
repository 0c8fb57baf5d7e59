"""`python -m vldm_mini sample --sd NAME "prompt"`: a video from Stable Diffusion.

Paper: section 4.2. Chapter 10 uses the same pipeline.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from vldm_mini import machine
from vldm_mini.weights import writable

from .checkpoints import ADAPTER_MILLIONS, CHECKPOINTS, MOTION_ADAPTER, empty_unet, find


def sample(args: argparse.Namespace) -> None:
    """One video of a prompt: an animated WebP, a PNG of its frames and an x-t slice.

    Raises ValueError, FileNotFoundError and OSError (no network) saying what to do.
    """
    if args.sd_list:
        print(table())
        return
    if args.dry_run:
        print(dry_run(args.sd))
        return
    if not args.prompt:
        raise ValueError('--sd NAME needs a prompt: sample --sd NAME "a person waves"')
    if args.motion_adapter and args.temporal:
        raise ValueError("--motion-adapter and --temporal are two kinds of temporal layers: "
                         "give one of them")
    from vldm_mini.teaching import pictures

    from .pipeline import VideoPipeline
    out = writable(args.out)
    dtype = {"torch_dtype": torch.float16} if args.half else {}
    video = VideoPipeline.from_pretrained(args.sd, args.temporal, args.motion_adapter, **dtype)
    if args.offload:
        video.enable_model_cpu_offload()
    else:
        video.to(machine.device())
    frames = _call(video, args)[0]
    clip = frames[None] * 2 - 1
    pictures.movie(clip).save(out / "video.webp")
    pictures.strip(clip).save(out / "strip.png")
    pictures.slice(clip).save(out / "slice.png")
    print(f"done: video.webp, strip.png and slice.png in {out}")


def _call(video: Any, args: argparse.Namespace) -> torch.Tensor:
    """The videos (b t 3 h w) in [0, 1] that the command line asks for."""
    size = {key: getattr(args, key) for key in ("height", "width") if getattr(args, key)}
    return video(args.prompt, args.frames or 8, negative_prompt=args.negative_prompt,
                 guidance_scale=args.guidance, num_inference_steps=args.steps or 50,
                 generator=torch.Generator().manual_seed(args.seed), alpha=args.alpha,
                 decode_chunk_size=args.decode_chunk, output_type="pt", **size).frames


def table() -> str:
    """The public checkpoints as text."""
    lines = [f"{'name':<48}{'weights in half precision':<27}what"]
    for one in CHECKPOINTS:
        lines.append(f"{one.name:<48}{one.gigabytes():<27.1f}{one.what}; {one.licence}")
    motion = ADAPTER_MILLIONS * 1e6 * 2 / 2 ** 30
    lines.append(f"{MOTION_ADAPTER:<48}{motion:<27.1f}AnimateDiff's motion modules, for 1.x; "
                 "Apache-2.0")
    return "\n".join(lines)


def dry_run(name: str | None) -> str:
    """Parameters of the networks at their real widths, built on the meta device."""
    from vldm_mini.temporal import insert, temporal_parameters
    wanted = CHECKPOINTS if name is None else (find(name),)
    lines = []
    for one in wanted:
        unet = empty_unet(one)
        with torch.device("meta"):
            layers = insert(unet, text_channels=one.text_channels)
        spatial = sum(p.numel() for p in unet.parameters())
        temporal = sum(p.numel() for p in temporal_parameters(layers))
        lines += [one.name, f"  U-Net (theta)             {spatial:>13,} parameters, "
                  f"{spatial * 2 / 2 ** 30:.1f} GiB in half precision",
                  f"  temporal layers (phi)     {temporal:>13,} parameters, "
                  f"{temporal * 2 / 2 ** 30:.1f} GiB",
                  f"  all weights of the pipeline, with phi: "
                  f"{one.gigabytes() + temporal * 2 / 2 ** 30:.1f} GiB"]
    return "\n".join(lines)
