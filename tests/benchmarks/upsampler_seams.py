"""Is an enlarged patch the crop of the whole, and are the edges of tiles visible?

A held-out clip, 8 frames of 256x512 from 64x128, both upsamplers, 10 steps, the same noise
everywhere. tiles_psnr_db: tiles of 32x32 small pixels, each sampled with 16 more on each side,
against the whole at once. patch_psnr_db: the middle 32x64 sampled alone, with nothing around it,
against the crop of the whole, 12 small pixels inside its own edge; up to its edge beside it.
psnr_db is the smaller of tiles and patch. chunks_psnr_db: 24 frames, 8 at a time, against all at
once. seam: the mean step between neighbouring pixels across the edges of tiles over that of the
whole at the same positions; 1: none. Baselines: tiles without a margin, chunks without an
overlap.
"""
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.datasets import driving, video
from vldm_mini.diffusion import ddim_times
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.upsampler import KINDS, VideoUpsampler

from ._common import number, shipped_folder

TILE, SEED = 32, 5


def small_video(frames: int) -> Tensor:
    """A held-out clip at 30 frames a second, (1 t 3 64 128)."""
    seed = driving.seeds("held_out", 1, first=60_000)[0]
    return video.to_float(driving.DrivingClip(seed, frames, 64, 30.0, start=2.0).frames)[None]


def seam(x: Tensor, whole: Tensor, tile: int = 4 * TILE) -> float:
    """Steps across the edges of tiles, over those of the whole video."""
    def steps(y: Tensor) -> Tensor:
        rows = y.diff(dim=-2).abs()[..., tile - 1::tile, :]
        columns = y.diff(dim=-1).abs()[..., tile - 1::tile]
        return torch.cat([rows.flatten(), columns.flatten()]).mean()
    return number(steps(x) / steps(whole), 4)


def psnr(a: Tensor, b: Tensor) -> float:
    """dB."""
    return number(measures.psnr(a, b).mean(), 2)


@torch.no_grad()
def middle_alone(upsampler: VideoUpsampler, low: Tensor, steps: int) -> tuple[Tensor, tuple]:
    """The middle half of each side, sampled with nothing around it -> the patch, and where it
    lies in the whole: (rows, columns)."""
    h, w = low.shape[-2:]
    sides = slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)
    level = torch.zeros(1, dtype=torch.long)
    given = upsampler.given(low, 0, SEED, level)
    noise = upsampler.start(low, 0, SEED)
    rows, columns = ((side, side) for side in sides)       # all that is seen is kept
    patch = upsampler.square(given, noise, level, ddim_times(steps), rows, columns)
    return patch, tuple(slice(4 * side.start, 4 * side.stop) for side in sides)


@torch.no_grad()
def of_upsampler(upsampler: VideoUpsampler, low: Tensor, steps: int = 10) -> dict:
    """All figures of one upsampler."""
    def sample(low: Tensor, **how) -> Tensor:
        return upsampler(low, seed=SEED, steps=steps, **how)
    first = low[:, :8]
    whole = sample(first)
    tiled = sample(first, tile=(TILE, TILE), margin=16)
    without_margin = sample(first, tile=(TILE, TILE), margin=0)
    patch, (rows, columns) = middle_alone(upsampler, first, steps)
    crop, inside = whole[..., rows, columns], (..., slice(48, -48), slice(48, -48))
    together = sample(low, frames=low.shape[1])
    chunks, without_overlap = (sample(low, frames=8, overlap=n) for n in (4, 0))
    return {"tiles_psnr_db": psnr(tiled, whole), "patch_psnr_db": psnr(patch[inside], crop[inside]),
            "patch_with_its_edges_psnr_db": psnr(patch, crop),
            "chunks_psnr_db": psnr(chunks, together), "seam": seam(tiled, whole),
            "beside": {"tiles without margin": psnr(without_margin, whole),
                       "their seam": seam(without_margin, whole),
                       "chunks without overlap": psnr(without_overlap, together)}}


def run(folder: Path | None = None, frames: int = 24, steps: int = 10) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    low = small_video(frames)
    found = {kind: of_upsampler(VideoUpsampler.from_pretrained(folder, kind), low, steps)
             for kind in KINDS}
    least = min(row[key] for row in found.values() for key in ("tiles_psnr_db", "patch_psnr_db"))
    return {"psnr_db": least, **found}
