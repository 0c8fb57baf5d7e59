"""Is a patch the crop of the whole, and can the edges of tiles be seen?

A held-out drive, 8 frames of 256x512 from 64x128, both upsamplers, 10 steps, the same noise everywhere. tiles_psnr_db:
tiles of 32x32 small pixels, each seen with 16 more on each side, against the whole at once. patch_psnr_db: the middle
32x64 made alone, with nothing around it, against the crop of the whole, 12 small pixels off its own edge; at its edge
beside it. psnr_db is the least of tiles and patch. chunks_psnr_db: 24 frames, 8 at a time, against all at once. seam: the
mean step between neighbouring pixels across the edges of tiles over that of the whole at the same insertion_points; 1: none.
Opponents: tiles without a margin, chunks without an overlap.
"""
import torch

from vldm_mini import weights
from vldm_mini.datasets import driving, video
from vldm_mini.diffusion import ddim_times
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.upsampler import KINDS, VideoUpsampler

TILE, SEED = 32, 5


def small(frames):
    """A held-out drive at 30 frames a second, (1 t 3 64 128)."""
    seed = driving.seeds("held_out", 1, first=60_000)[0]
    return video.to_float(driving.DrivingClip(seed, frames, 64, 30.0, start=2.0).frames)[None]


def seam(x, whole, tile=4 * TILE):
    """Steps across the edges of tiles, over those of the whole film."""
    def steps(y):
        rows, columns = y.diff(dim=-2).abs(), y.diff(dim=-1).abs()
        return torch.cat([rows[..., tile - 1::tile, :].flatten(), columns[..., tile - 1::tile].flatten()]).mean()
    return round(float(steps(x) / steps(whole)), 4)


@torch.no_grad()
def of(up, low, steps=10):
    """All figures of one upsampler."""
    psnr = lambda a, b: round(float(measures.psnr(a, b).mean()), 2)                                      # noqa: E731
    first = low[:, :8]
    whole = up(first, seed=SEED, steps=steps)
    tiled, bare = (up(first, seed=SEED, steps=steps, tile=(TILE, TILE), margin=margin) for margin in (16, 0))
    # the middle alone: a tile without margin of the same noise
    h, w = low.shape[-2:]
    keep = slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)
    level = torch.zeros(1, dtype=torch.long)
    given = up.given(first, 0, SEED, level)
    patch = up.square(given, up.start(first, 0, SEED), level, ddim_times(steps), *[(side, side) for side in keep])
    crop = whole[..., 4 * keep[0].start:4 * keep[0].stop, 4 * keep[1].start:4 * keep[1].stop]
    inside = (..., slice(48, -48), slice(48, -48))
    together = up(low, seed=SEED, steps=steps, frames=low.shape[1])
    chunks, cut = (up(low, seed=SEED, steps=steps, frames=8, overlap=n) for n in (4, 0))
    return {"tiles_psnr_db": psnr(tiled, whole), "patch_psnr_db": psnr(patch[inside], crop[inside]),
            "patch_with_its_edges_psnr_db": psnr(patch, crop), "chunks_psnr_db": psnr(chunks, together),
            "seam": seam(tiled, whole),
            "beside": {"tiles without margin": psnr(bare, whole), "their seam": seam(bare, whole),
                       "chunks without overlap": psnr(cut, together)}}


def run(folder=None, frames=24, steps=10):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    found = {kind: of(VideoUpsampler.from_pretrained(folder, kind), small(frames), steps) for kind in KINDS}
    return {"psnr_db": min(row[k] for row in found.values() for k in ("tiles_psnr_db", "patch_psnr_db")), **found}
