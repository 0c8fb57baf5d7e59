"""Peak memory of super-resolution, by the number of frames and by their size.

Each row in a process of its own: peak resident memory above that of the loaded model, MB, the
pixel upsampler with 2 steps, parts discarded as they come. growth_mb_per_frame: from 64 to 128
frames of 256x512. By size: 8 frames of 128x256, 256x512 and 512x1024, whole and in tiles of 32x64
small pixels. Baseline: all frames at once. Plotted in data/media/upsampler_memory.png. Most of it
is what the allocator retains: it has settled after 64 frames, and with
MALLOC_MMAP_THRESHOLD_=1000000, which is slow, 64 frames took 389 MB.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from vldm_mini import weights
from vldm_mini.evaluation import driving_samples, samples
from vldm_mini.upsampler import VideoUpsampler

from ._common import shipped_folder

TILE = (32, 64)


def peak_mb(folder: str, frames: int, height: int, together: int = 0,
            tile: tuple[int, int] | None = None, kind: str = "pixel") -> float:
    """Peak memory of one video above that of the loaded model, in this process.

    together: frames at once; 0: 8 of them, overlapping by 4.
    """
    upsampler = VideoUpsampler.from_pretrained(folder, kind)
    low = torch.zeros(1, frames, 3, height // 4, height // 2)
    before = samples.peak_memory_mb()
    for _ in upsampler.parts(low, steps=2, frames=together or 8, overlap=0 if together else 4,
                             tile=tile):
        pass
    return round(samples.peak_memory_mb() - before, 1)


def in_fresh_process(*arguments: object) -> float:
    """peak_mb(*arguments) in a fresh process with as many threads as this one."""
    code = (f"import torch, sys, json; torch.set_num_threads({torch.get_num_threads()}); "
            "from tests.benchmarks.upsampler_memory import peak_mb; "
            "print(peak_mb(*json.loads(sys.argv[1])))")
    done = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], text=True,
                          check=True, capture_output=True, env=dict(os.environ))
    return float(done.stdout.split()[-1])


def plot(by_frames: dict, at_once: dict, by_size: dict) -> None:
    """Memory against frames and frame size."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(list(by_frames), list(by_frames.values()), "o-", label="8 at a time")
    left.plot(list(at_once), list(at_once.values()), "s--", label="all at once")
    left.set(xlabel="frames of 256x512", ylabel="MB above the loaded model", ylim=(0, None))
    for name, mark in (("whole", "s--"), ("tiles", "o-")):
        right.plot(list(by_size), [row[name] for row in by_size.values()], mark, label=name)
    right.set(xlabel="size of 8 frames", ylim=(0, None))
    for ax in (left, right):
        ax.legend()
    fig.savefig(samples.ROOT / "data" / "media" / "upsampler_memory.png", dpi=80)


def growth(by_frames: dict[int, float]) -> float:
    """MB a frame, from the second smallest number of frames to the largest."""
    few, many = sorted(by_frames)[1], max(by_frames)
    return (by_frames[many] - by_frames[few]) / (many - few)


def run(folder: Path | None = None, frames: tuple[int, ...] = (32, 64, 128),
        heights: tuple[int, ...] = (128, 256, 512),
        together: tuple[int, ...] = (8, 16, 32)) -> dict:
    """All figures; arguments are for tests."""
    path = shipped_folder(folder, driving_samples.WEIGHTS)
    by_frames = {n: in_fresh_process(str(path), n, 256) for n in frames}
    by_size = {}
    for height in heights:
        by_size[f"{height}x{2 * height}"] = dict(
            whole=in_fresh_process(str(path), 8, height),
            tiles=in_fresh_process(str(path), 8, height, 0, TILE))
    at_once = {n: in_fresh_process(str(path), n, 256, n) for n in together}
    if path == weights.shipped(driving_samples.WEIGHTS):
        plot(by_frames, at_once, by_size)
    return {"growth_mb_per_frame": round(growth(by_frames), 3), "by_frames": by_frames,
            "by_size": by_size,
            "all_at_once": {"growth_mb_per_frame": round(growth(at_once), 1), "by_frames": at_once}}
