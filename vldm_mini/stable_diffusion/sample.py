"""`python -m vldm_mini sample --sd NAME "prompt"`: a video from Stable Diffusion.

Paper: section 4.2. Chapter 10 uses the same pipeline.
"""

from __future__ import annotations

import argparse

import torch

from vldm_mini import machine
from vldm_mini.weights import writable

from .checkpoints import ADAPTER_MILLIONS, CHECKPOINTS, MOTION_ADAPTER, empty_unet, find


def text_output(args: argparse.Namespace) -> str | None:
    """What --sd-list and --dry-run print; None for neither."""
    if args.sd_list:
        return table()
    if args.dry_run:
        return dry_run(args.sd)
    return None


def sample_prompt(args: argparse.Namespace) -> torch.Tensor:
    """The video (1 t 3 h w) in [-1, 1] that the command line asks for.

    Raises ValueError, FileNotFoundError and OSError (no network) saying what to do.
    """
    from .pipeline import VideoPipeline
    if not args.prompt:
        raise ValueError('--sd NAME needs a prompt: sample --sd NAME "a person waves"')
    if args.motion_adapter and args.temporal:
        raise ValueError("--motion-adapter and --temporal are two kinds of temporal layers: "
                         "give one of them")
    writable(args.out)
    dtype = {"torch_dtype": torch.float16} if args.half else {}
    video = VideoPipeline.from_pretrained(args.sd, args.temporal, args.motion_adapter, **dtype)
    if args.offload:
        video.enable_model_cpu_offload()
    else:
        video.to(machine.device())
    size = {key: getattr(args, key) for key in ("height", "width") if getattr(args, key)}
    frames = video(args.prompt, args.frames or 8, negative_prompt=args.negative_prompt,
                   guidance_scale=args.guidance, num_inference_steps=args.steps or 50,
                   generator=torch.Generator().manual_seed(args.seed), alpha=args.alpha,
                   decode_chunk_size=args.decode_chunk, output_type="pt", **size).frames
    return frames * 2 - 1


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
