"""From noise to 113 frames of 256x512, every stage of the paper's Fig. 5: seconds and memory of
each.

One video, weights as shipped, both upsamplers with 10 steps; seconds and peak_memory_mb (the
process's peak, read after each stage, weights included) with the pixel upsampler, the other one
beside it. The large video goes to an .mp4 part by part, runs/samples/stack-KIND.mp4, and is not
kept in memory.
"""
from pathlib import Path

from vldm_mini.evaluation import driving_samples, samples
from vldm_mini.pipeline import VideoLDM
from vldm_mini.teaching import pictures
from vldm_mini.upsampler import KINDS

from ._common import shipped_folder


def run(folder: Path | None = None, seed: int = 0, steps: int = 10) -> dict:
    """All figures; arguments are for tests."""
    model = VideoLDM.from_pretrained(shipped_folder(folder, driving_samples.WEIGHTS))
    labels, stage = model.labels(light="day", cars=2), samples.Stages()
    x = driving_samples.smooth_video(model, labels, seed, stage)
    for kind in KINDS:
        upsampler = model.upsampler(kind)

        def enlarge(upsampler=upsampler, kind=kind):
            parts = (part[0] for part in upsampler.parts(x, seed=seed, steps=steps))
            path = samples.RUNS / "samples" / f"stack-{kind}.mp4"
            return pictures.save_growing(path, parts, 30, scale=1)
        stage(f"{kind} upsampler", enlarge)
    pixel = [row for name, row in stage.items() if name != "latent upsampler"]
    return {"frames": x.shape[1], "seconds": round(sum(row["seconds"] for row in pixel), 2),
            "peak_memory_mb": pixel[-1]["peak_memory_mb"], "by_stage": stage, "steps": steps,
            "precision": upsampler.precision}
