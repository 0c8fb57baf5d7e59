"""From noise to 113 frames: key frames, two passes of interpolation, temporal decoding; seconds and memory by stage.

One film of 64x128, weights as shipped. peak_memory_mb is the process's peak, read after each stage, weights included.
"""
from vldm_mini import weights
from vldm_mini.evaluation import driving_samples
from vldm_mini.pipeline import VideoLDM


def run(folder=None, seed=0):
    """All figures; arguments are for tests."""
    model, stage = VideoLDM.from_pretrained(folder or weights.shipped(driving_samples.WEIGHTS)), driving_samples.Stages()
    x = driving_samples.smooth(model, model.labels(light="day", cars=2), seed, stage)
    return {"frames": x.shape[1], "seconds": round(sum(row["seconds"] for row in stage.values()), 2),
            "peak_memory_mb": stage["decoding"]["peak_memory_mb"], "by_stage": stage}
