"""Frames a second of the driving renderer, and how much detail its frames have.

frames_per_second: of 64 x 128, on one core, half of them at night, of existing scenes; `with_scene`
counts setting the scenes up as well, 8 frames each. bicubic_psnr_db: frames of held-out seeds at
64 x 128, made four times smaller and larger again; at most 25 dB means that a frame holds more than
its small copy. Beside it the same for smooth frames.
"""
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vldm_mini.datasets.driving import Scene, seeds

SCENES, FRAMES, FPS = 24, 8, 1.875


def bicubic(frames: Tensor, factor: int = 4) -> Tensor:
    """Frames (n 3 h w) in [0, 1] made `factor` times smaller and larger again."""
    small = F.interpolate(frames, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=factor, mode="bicubic").clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Frames (n ...) in [0, 1] -> the mean over frames, dB."""
    error = (a - b).square().flatten(1).mean(1)
    return float((-10 * torch.log10(error)).mean())


def run() -> dict:
    """All figures."""
    times, frames = np.arange(FRAMES) / FPS, []
    Scene(0).render(times[:1])                          # textures and sprites are made once
    began, rendering = time.process_time(), 0.0
    numbers = seeds("held_out", SCENES)
    for seed in numbers:
        scene = Scene(seed, night=bool(seed % 2))
        start = time.process_time()
        frames.append(scene.render(times))
        rendering += time.process_time() - start
    everything = time.process_time() - began
    x = torch.from_numpy(np.concatenate(frames)).movedim(-1, 1).double() / 255
    night = torch.tensor([seed % 2 == 1 for seed in numbers for _ in times])
    by_light = {name: round(psnr(x[those], bicubic(x[those])), 2)
                for name, those in (("day", ~night), ("night", night))}
    smooth = bicubic(x, 8)
    return {"frames_per_second": round(len(x) / rendering, 1),
            "with_scene": round(len(x) / everything, 1),
            "bicubic_psnr_db": round(psnr(x, bicubic(x)), 2), "by_light": by_light,
            "smooth_psnr_db": round(psnr(smooth, bicubic(smooth)), 2), "n": len(x),
            "size": [64, 128]}
