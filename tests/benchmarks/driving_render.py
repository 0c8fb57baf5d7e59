"""How fast the driving world is drawn, and whether it has texture.

frames_per_second: of 64 x 128, on one core, half of them at night, of scenes that are made already; `with_scene`
counts the making of the scenes as well, 8 frames each. bicubic_psnr_db: frames of held-out seeds at 64 x 128, made
four times smaller and larger again; at most 25 dB means that there is more in a frame than its small copy tells.
Beside it the same for frames that are smooth.
"""
import time

import numpy as np
import torch
import torch.nn.functional as F

from vldm_mini.datasets.driving import Scene, seeds

SCENES, FRAMES, FPS = 24, 8, 1.875


def bicubic(frames, factor=4):
    """Films (n 3 h w) made smaller and larger again, values in [0, 1]."""
    small = F.interpolate(frames, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=factor, mode="bicubic").clamp(0, 1)


def psnr(a, b):
    """The mean over frames, dB."""
    return float((-10 * torch.log10((a - b).square().flatten(1).mean(1))).mean())


def run():
    """All figures."""
    times, frames = np.arange(FRAMES) / FPS, []
    Scene(0).render(times[:1])                                              # textures and sprites are made once
    began, drawing = time.process_time(), 0.0
    for seed in seeds("held_out", SCENES):
        scene = Scene(seed, night=bool(seed % 2))
        start = time.process_time()
        frames.append(scene.render(times))
        drawing += time.process_time() - start
    everything = time.process_time() - began
    x = torch.from_numpy(np.concatenate(frames)).movedim(-1, 1).double() / 255
    night = torch.tensor([seed % 2 == 1 for seed in seeds("held_out", SCENES) for _ in times])
    by_light = {name: round(psnr(x[k], bicubic(x[k])), 2) for name, k in (("day", ~night), ("night", night))}
    smooth = bicubic(x, 8)
    return {"frames_per_second": round(len(x) / drawing, 1), "with_scene": round(len(x) / everything, 1),
            "bicubic_psnr_db": round(psnr(x, bicubic(x)), 2), "by_light": by_light,
            "smooth_psnr_db": round(psnr(smooth, bicubic(smooth)), 2), "n": len(x), "size": [64, 128]}
