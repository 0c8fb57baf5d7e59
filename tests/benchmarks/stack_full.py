"""From noise to 113 frames of 256x512: every stage of the paper's Fig. 5; seconds and memory by stage.

One film, weights as shipped, both upsamplers with 10 steps; seconds and peak_memory_mb (the process's peak, read after
each stage, weights included) with the pixel upsampler, the other one beside it. The large film goes to an .mp4 part by
part, runs/samples/stack-KIND.mp4, and is not kept in memory.
"""
from vldm_mini import weights
from vldm_mini.evaluation import action_samples, driving_samples
from vldm_mini.pipeline import VideoLDM
from vldm_mini.teaching import pictures
from vldm_mini.upsampler import KINDS


def run(folder=None, seed=0, steps=10):
    """All figures; arguments are for tests."""
    model, stage = VideoLDM.from_pretrained(folder or weights.shipped(driving_samples.WEIGHTS)), driving_samples.Stages()
    x = driving_samples.smooth(model, model.labels(light="day", cars=2), seed, stage)

    def large(up, kind):
        parts = (part[0] for part in up.parts(x, seed=seed, steps=steps))
        return pictures.save_growing(action_samples.RUNS / "samples" / f"stack-{kind}.mp4", parts, 30, scale=1)
    for kind in KINDS:
        up = model.upsampler(kind)
        stage(f"{kind} upsampler", lambda up=up, kind=kind: large(up, kind))
    pixel = [row for name, row in stage.items() if name != "latent upsampler"]
    return {"frames": x.shape[1], "seconds": round(sum(row["seconds"] for row in pixel), 2),
            "peak_memory_mb": pixel[-1]["peak_memory_mb"], "by_stage": stage, "steps": steps, "precision": up.precision}
