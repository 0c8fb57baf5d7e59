"""How hard should a film be guided by what came before? Scales of eq. (4) from 1 to 4, on held-out drives.

100 held-out clips of 8 key frames, two frames given. For each scale: Fréchet distance of films and of frames to the true
ones, and the median motion of the frames made over that of the true ones. best_scale: the one of the smallest distance
of films; motion_ratio_at_best. Beside it a frozen film (the last frame given, repeated), and other real drives. Drawn in
data/media/guidance.png.
"""
from functools import partial

import torch

from vldm_mini import weights
from vldm_mini.evaluation import action_samples, driving_samples, measures
from vldm_mini.pipeline import VideoLDM

from .prediction import STEPS, continued, held_out, kept

N, SCALES = 100, (1.0, 1.5, 2.0, 3.0, 4.0)


def draw(table, beside):
    """The table as a plot: both distances, and motion, against the scale; what stands beside it as dotted lines."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for ax, key in zip(axes, ("video_distance", "frame_distance", "motion_ratio")):
        ax.plot([float(s) for s in table], [row[key] for row in table.values()], "o-", label="continued drives")
        for (name, row), colour in zip(beside.items(), ("tab:red", "tab:green")):
            ax.axhline(row[key], ls=":", color=colour, label=name)
        ax.set(xlabel="context guidance s", ylabel=key.replace("_", " "), ylim=(0, None))
    axes[0].legend()
    fig.savefig(action_samples.ROOT / "data" / "films" / "guidance.png", dpi=80)
    plt.close(fig)


@torch.no_grad()
def run(folder=None, n=N, scales=SCALES):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    model, classify = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)[0]
    _, x, labels, z = held_out(model, n)
    true = classify.classify(x)

    def row(film):
        said = classify.classify(film)
        far = lambda kind: round(measures.frechet(                                                       # noqa: E731
            getattr(said, kind).flatten(0, -2), getattr(true, kind).flatten(0, -2)), 5)
        moved = [float(measures.motion(some[:, 1:]).median()) for some in (film, x)]
        return dict(video_distance=far("films"), frame_distance=far("frames"), motion_ratio=round(moved[0] / moved[1], 3))
    made = {s: kept(folder, f"{n} guided {s}", partial(continued, model, z, labels, 2, 0, STEPS, s)) for s in scales}
    table = {f"{s:g}": row(model.decode(some)) for s, some in made.items()}
    others = driving_samples.floats(driving_samples.real(n, first=9000)[0])
    beside = {"frozen": row(x[:, 1:2].expand_as(x)), "other real drives": row(others)}
    if folder == weights.shipped(driving_samples.WEIGHTS):
        draw(table, beside)
    best = min(table, key=lambda s: table[s]["video_distance"])
    return {"best_scale": float(best), "motion_ratio_at_best": table[best]["motion_ratio"], "table": table,
            "beside": beside, "n": n}
