"""PSNR of the autoencoder of `driving` on held-out seeds, against bicubic reduction to a quarter.

psnr_db: the mean over frames of the peak signal-to-noise ratio, encoded to the mean latent and
decoded; latent_std of those latents. bicubic_psnr_db: frames made four times smaller and larger
again, which keeps as many positions as the latents have; gain_over_bicubic_db: psnr_db minus
that. Both by light as well.
"""
from pathlib import Path

import torch

from vldm_mini.autoencoder import Autoencoder
from vldm_mini.datasets import driving, video

from ._common import number, shipped_folder
from .autoencoder_actions import encode_and_decode
from .driving_render import bicubic, psnr


def run(folder: Path | None = None, n: int = 60) -> dict:
    """All figures; arguments are for tests."""
    model = Autoencoder.from_pretrained(shipped_folder(folder, "driving") / "autoencoder")
    clips = driving.clips("held_out", n, 8)
    x = torch.cat([video.to_float(clip.frames) for clip in clips])
    night = torch.tensor([clip.scene.night for clip in clips]).repeat_interleave(8)
    z, y = encode_and_decode(model, x)
    x, y = (x + 1) / 2, (y + 1) / 2
    reduced = bicubic(x)
    by_light = {}
    for name, those in (("day", ~night), ("night", night)):
        by_light[name] = {"psnr_db": number(psnr(x[those], y[those]), 2),
                          "bicubic": number(psnr(x[those], reduced[those]), 2)}
    return {"psnr_db": number(psnr(x, y), 2),
            "gain_over_bicubic_db": number(psnr(x, y) - psnr(x, reduced), 2),
            "bicubic_psnr_db": number(psnr(x, reduced), 2),
            "latent_std": number(z.double().std(), 4), "n": len(x), "by_light": by_light}
