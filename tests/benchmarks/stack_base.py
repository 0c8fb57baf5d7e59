"""From noise to 113 frames of 64x128: seconds and memory of each stage.

Key frames, two passes of interpolation, temporal decoding. One video, weights as shipped.
peak_memory_mb is the process's peak, read after each stage, weights included.
"""
from pathlib import Path

from vldm_mini.evaluation import driving_samples
from vldm_mini.evaluation.samples import Stages
from vldm_mini.pipeline import VideoLDM

from ._common import shipped_folder


def run(folder: Path | None = None, seed: int = 0) -> dict:
    """All figures; arguments are for tests."""
    model = VideoLDM.from_pretrained(shipped_folder(folder, driving_samples.WEIGHTS))
    labels, stage = model.labels(light="day", cars=2), Stages()
    x = driving_samples.smooth_video(model, labels, seed, stage)
    return {"frames": x.shape[1],
            "seconds": round(sum(row["seconds"] for row in stage.values()), 2),
            "peak_memory_mb": stage["decoding"]["peak_memory_mb"], "by_stage": stage}
