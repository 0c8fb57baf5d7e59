"""From noise to 113 frames of 256x512: every stage of the paper's Fig. 5; seconds and memory by stage.

One film, weights as shipped, both upsamplers with 10 steps; seconds and peak_memory_mb (the process's peak, read after
each stage, weights included) with the pixel upsampler, the other beside it. The large film goes to an .mp4 part by part,
runs/samples/stack-KIND.mp4, and is not kept in memory.
"""
import resource
import time

import torch

from vldm_mini import show, weights
from vldm_mini.pipeline import VideoLDM
from vldm_mini.upsampler import KINDS

from . import _drives, _samples


def run(folder=None, seed=0, steps=10):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(_drives.WEIGHTS)
    model, by_stage, peak = VideoLDM.from_pretrained(folder), {}, 0.0
    labels = model.labels(light="day", cars=2)

    def stage(name, make):
        nonlocal peak
        start = time.perf_counter()
        out = make()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        by_stage[name] = dict(seconds=round(time.perf_counter() - start, 2), peak_memory_mb=round(peak))
        return out

    def large(kind):
        parts = model.upsampler(kind).parts(x, seed=seed, steps=steps)
        show.save_growing(_samples.RUNS / "samples" / f"stack-{kind}.mp4", (part[0] for part in parts), 30, scale=1)
    with torch.no_grad():
        z = stage("key frames", lambda: model.latents(labels, seed=seed))
        z = stage("to 29", lambda: model.interpolate(z, labels, 0, seed))
        z = stage("to 113", lambda: model.interpolate(z, labels, 1, seed))
        x = stage("decoding", lambda: model.decode(z))
        for kind in KINDS:
            stage(f"{kind} upsampler", lambda kind=kind: large(kind))
    pixel = [row for name, row in by_stage.items() if name != "latent upsampler"]
    return {"frames": x.shape[1], "seconds": round(sum(row["seconds"] for row in pixel), 2),
            "peak_memory_mb": pixel[-1]["peak_memory_mb"], "by_stage": by_stage, "steps": steps}
