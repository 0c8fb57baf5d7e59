"""From noise to 113 frames: key frames, two passes of interpolation, temporal decoding; seconds and memory by stage.

One film of 64x128, weights as shipped. peak_memory_mb is the process's peak, read after each stage, weights included.
"""
import resource
import time

import torch

from vldm_mini import weights
from vldm_mini.pipeline import VideoLDM

from . import _drives


def run(folder=None, seed=0):
    """All figures; arguments are for tests."""
    model = VideoLDM.from_pretrained(folder or weights.shipped(_drives.WEIGHTS))
    labels, by_stage, peak = model.labels(light="day", cars=2), {}, 0.0

    def stage(name, make):
        nonlocal peak
        start = time.perf_counter()
        out = make()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        by_stage[name] = dict(seconds=round(time.perf_counter() - start, 2), peak_memory_mb=round(peak))
        return out
    with torch.no_grad():
        z = stage("key frames", lambda: model.latents(labels, seed=seed))
        z = stage("to 29", lambda: model.interpolate(z, labels, 0, seed))
        z = stage("to 113", lambda: model.interpolate(z, labels, 1, seed))
        x = stage("decoding", lambda: model.decode(z))
    return {"frames": x.shape[1], "seconds": round(sum(row["seconds"] for row in by_stage.values()), 2),
            "peak_memory_mb": round(peak), "by_stage": by_stage}
