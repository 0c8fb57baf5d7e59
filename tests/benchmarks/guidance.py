"""Which scale of context guidance (eq. 4) is best? Scales from 1 to 4, on held-out driving clips.

100 held-out clips of 8 key frames, two frames given. For each scale: Fréchet distance of videos
and of frames to the true ones, and the median motion of the generated frames over that of the
true ones. best_scale: the one of the smallest distance of videos; motion_ratio_at_best. Beside it
a frozen video (the last given frame, repeated), and other real clips. Plotted in
data/media/guidance.png.
"""
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import driving_samples, measures, samples
from vldm_mini.pipeline import VideoLDM

from ._common import feature_distance, shipped_folder
from .prediction import STEPS, continuations, held_out, kept

N, SCALES = 100, (1.0, 1.5, 2.0, 3.0, 4.0)


def plot(table: dict, beside: dict) -> None:
    """Both distances, and motion, against the scale; what stands beside it as dotted lines."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for ax, key in zip(axes, ("video_distance", "frame_distance", "motion_ratio")):
        ax.plot([float(scale) for scale in table], [row[key] for row in table.values()], "o-",
                label="continuations")
        for (name, row), colour in zip(beside.items(), ("tab:red", "tab:green")):
            ax.axhline(row[key], ls=":", color=colour, label=name)
        ax.set(xlabel="context guidance s", ylabel=key.replace("_", " "), ylim=(0, None))
    axes[0].legend()
    fig.savefig(samples.ROOT / "data" / "media" / "guidance.png", dpi=80)
    plt.close(fig)


@torch.no_grad()
def run(folder: Path | None = None, n: int = N, scales: tuple[float, ...] = SCALES) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    model, (classifier, _) = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)
    _, x, labels, z = held_out(model, n)
    of_true, true_motion = classifier.classify(x), measures.motion(x[:, 1:]).median()

    def row(videos: Tensor) -> dict:
        predicted = classifier.classify(videos)
        motion = measures.motion(videos[:, 1:]).median()
        return dict(video_distance=round(feature_distance(predicted, of_true, "video"), 5),
                    frame_distance=round(feature_distance(predicted, of_true, "frame"), 5),
                    motion_ratio=round(float(motion / true_motion), 3))
    table = {}
    for scale in scales:
        make = partial(continuations, model, z, labels, 2, 0, STEPS, scale)
        table[f"{scale:g}"] = row(model.decode(kept(folder, f"{n} guided {scale}", make)))
    others = video.to_float(driving_samples.real(n, first=9000)[0])
    beside = {"frozen": row(x[:, 1:2].expand_as(x)), "other real clips": row(others)}
    if folder == weights.shipped(driving_samples.WEIGHTS) and n == N:
        plot(table, beside)
    best = min(table, key=lambda scale: table[scale]["video_distance"])
    return {"best_scale": float(best), "motion_ratio_at_best": table[best]["motion_ratio"],
            "table": table, "beside": beside, "n": n}
