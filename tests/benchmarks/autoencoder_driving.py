"""How well the autoencoder of `driving` gives back frames of held-out seeds, against their bicubic fourth.

psnr_db: the mean over frames of the peak signal-to-noise ratio, encoded to the mean latent and decoded; latent_std of
those latents. bicubic_psnr_db: frames made four times smaller and larger again, which keeps as many insertion_points as the
latents have; gain_over_bicubic_db: by how much the autoencoder is better. By light beside it.
"""
import torch

from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder
from vldm_mini.datasets import driving, video

from .autoencoder_actions import rebuild
from .driving_render import bicubic, psnr


def run(folder=None, n=60):
    """All figures; arguments are for tests."""
    model = Autoencoder.from_pretrained((folder or weights.shipped("driving")) / "autoencoder")
    clips = driving.clips("held_out", n, 8)
    x = torch.cat([video.to_float(clip.frames) for clip in clips])
    night = torch.tensor([clip.scene.night for clip in clips]).repeat_interleave(8)
    z, y = rebuild(model, x)
    x, y = (x + 1) / 2, (y + 1) / 2
    small = bicubic(x)
    lights = {"day": ~night, "night": night}
    return {"psnr_db": round(psnr(x, y), 2), "gain_over_bicubic_db": round(psnr(x, y) - psnr(x, small), 2),
            "bicubic_psnr_db": round(psnr(x, small), 2), "latent_std": round(float(z.double().std()), 4), "n": len(x),
            "by_light": {name: {"psnr_db": round(psnr(x[k], y[k]), 2), "bicubic": round(psnr(x[k], small[k]), 2)}
                         for name, k in lights.items()}}
