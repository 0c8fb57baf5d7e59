"""How much memory does a large film take, by its number of frames and by their size?

Each row in a process of its own: peak resident memory above that of the loaded model, MB, the pixel upsampler with 2
steps, parts thrown away as they come. growth_mb_per_frame: from 64 to 128 frames of 256x512. By size: 8 frames of
128x256, 256x512 and 512x1024, whole and in tiles of 32x64 small pixels. Opponent: all frames at once. Drawn in
data/media/upsampler_memory.png. Most of it is what the allocator keeps: it has settled after 64
frames, and with MALLOC_MMAP_THRESHOLD_=1000000, which is slow, 64 frames were seen to take 389 MB.
"""
import json
import os
import resource
import subprocess
import sys

import torch

from vldm_mini import weights
from vldm_mini.evaluation import action_samples, driving_samples
from vldm_mini.upsampler import VideoUpsampler


def peak_mb(folder, frames, height, together=0, tile=None, kind="pixel"):
    """Peak memory of one film above that of the loaded model, in this process."""
    up, low = VideoUpsampler.from_pretrained(folder, kind), torch.zeros(1, frames, 3, height // 4, height // 2)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2 ** 20)  # noqa: E731
    before = peak()
    for _ in up.parts(low, steps=2, frames=together or 8, overlap=0 if together else 4, tile=tile):
        pass
    return round(peak() - before, 1)


def alone(*row):
    """`peak_mb` in a fresh process with as many threads as this one."""
    code = f"import torch, sys, json; torch.set_num_threads({torch.get_num_threads()}); " \
           f"from tests.benchmarks.upsampler_memory import peak_mb; print(peak_mb(*json.loads(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(row)], capture_output=True, text=True, check=True,
                          env=dict(os.environ))
    return float(done.stdout.split()[-1])


def draw(by_frames, at_once, by_size):
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
    fig.savefig(action_samples.ROOT / "data" / "films" / "upsampler_memory.png", dpi=80)


def run(folder=None, frames=(32, 64, 128), heights=(128, 256, 512), together=(8, 16, 32)):
    """All figures; arguments are for tests."""
    folder = str(folder or weights.shipped(driving_samples.WEIGHTS))
    by_frames = {n: alone(folder, n, 256) for n in frames}
    tile = (32, 64)
    by_size = {f"{h}x{2 * h}": dict(whole=alone(folder, 8, h), tiles=alone(folder, 8, h, 0, tile)) for h in heights}
    at_once = {n: alone(folder, n, 256, n) for n in together}
    if folder == str(weights.shipped(driving_samples.WEIGHTS)):
        draw(by_frames, at_once, by_size)
    slope = lambda table: (table[max(table)] - table[sorted(table)[1]]) / (max(table) - sorted(table)[1])  # noqa: E731
    return {"growth_mb_per_frame": round(slope(by_frames), 3), "by_frames": by_frames, "by_size": by_size,
            "all_at_once": {"growth_mb_per_frame": round(slope(at_once), 1), "by_frames": at_once}}
