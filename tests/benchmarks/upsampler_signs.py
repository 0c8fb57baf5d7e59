"""The figures of `upsampler` on real video: the held-out clips of `signs`, 64x64 to 256x256, both upsamplers.

As `upsampler`, at 25 frames a second, 16 patches of each clip; features are those of the driving judge, which has never
seen a hand: they tell textures and edges apart, no more.
"""
import torch

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.recipes_upsampler import SIZES, large_films
from vldm_mini.upsampler import KINDS, VideoUpsampler

from . import _drives
from .upsampler import FRAMES, HEIGHT, MARGIN, MEANS, WIDTH, compared, kept

EACH = 16


def patches(films, each=EACH):
    """Films uint8 (t h w 3) -> (n 8 3 96 160), at moments and places drawn evenly."""
    out, h, w = [], HEIGHT + 8 * MARGIN, WIDTH + 8 * MARGIN
    for k, film in enumerate(films):
        for i in range(each):
            g = torch.Generator().manual_seed(1000 * k + i)
            at = int(torch.randint(len(film) - FRAMES + 1, (1,), generator=g))
            top, left = (4 * int(torch.randint((size - side) // 4 + 1, (1,), generator=g))
                         for size, side in zip(film.shape[1:3], (h, w)))
            out.append(video.to_float(film[at:at + FRAMES, top:top + h, left:left + w]))
    return torch.stack(out)


def run(folder=None, each=EACH, means=MEANS):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped("signs")
    judge, x = _drives.judges(weights.shipped(_drives.WEIGHTS))[0], patches(large_films("signs", SIZES["s"], "held_out"), each)
    found = {kind: compared(VideoUpsampler.from_pretrained(folder, kind), x, judge, kept(folder, kind), means)
             for kind in KINDS}
    return found["pixel"] | {"latent": found["latent"]}
