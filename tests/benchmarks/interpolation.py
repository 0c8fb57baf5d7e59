"""Are the frames between two true key frames better than a blend of the two?

Held-out drives, 80 clips of two true key frames each, windows of five frames at 7.5 a second (regime 0) and at 30
(regime 1), the renderer's own frames between as the truth. Scored where something moves: the half of the clips whose
true frames change most. gain_db_7_5, gain_db_30: PSNR of the mean of 4 samples minus that of the linear blend of the
same decoded key frames, frames between only, so that given frames count for nothing. sharpness_ratio: gradient energy of
single samples over the truth's, the worse of both rates; beside it that of the blend, and of the truth, encoded and
decoded, which no answer can pass honestly. feature_gain: Fréchet distance of the films' features to the truth, blend over
single samples, the worse of both rates.
"""
import torch
from einops import rearrange

from vldm_mini import weights
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.pipeline import VideoLDM
from vldm_mini.training import recipes

N, SAMPLES, SEED = 80, 4, 5


def truth(fps, n=N):
    """-> clips, (n 5 3 64 128) in [-1, 1]."""
    seeds = driving.seeds("held_out", n, first=30_000)
    clips = [driving.DrivingClip(seed, 5, 64, fps, start=3 * (seed % 3)) for seed in seeds]
    return clips, torch.stack([video.to_float(clip.frames) for clip in clips])


def gradient_energy(x):
    """Of films (n t 3 h w), frames between only -> (n,)."""
    x = x[:, 1:-1]
    return x.diff(dim=-1).square().flatten(1).mean(1) + x.diff(dim=-2).square().flatten(1).mean(1)


@torch.no_grad()
def at(model, classify, fps, regime, n=N):
    """All figures of one regime."""
    clips, x = truth(fps, n)
    labels = driving_samples.labels_of(clips)
    z = rearrange(model.autoencoder.encode(x.flatten(0, 1)), "(b t) c h w -> b t c h w", b=n)
    ends = z[:, [0, -1]]
    films = [model.decode(model.interpolate(ends, labels, regime, seed=SEED + k)) for k in range(SAMPLES)]
    a, b = model.decode(ends).split(1, dim=1)
    share = torch.linspace(0, 1, 5)[None, :, None, None, None]
    blend = (1 - share) * a + share * b
    moving = (change := x.diff(dim=1).square().flatten(1).mean(1)) >= change.median()
    between = lambda y: measures.psnr(y[moving, 1:-1], x[moving, 1:-1]).mean()                           # noqa: E731
    sharp = lambda y: float((gradient_energy(y)[moving] / gradient_energy(x)[moving]).median())         # noqa: E731
    said = {name: classify.classify(y).films for name, y in (("sample", films[0]), ("blend", blend), ("truth", x))}
    return {"mean_db": round(float(between(torch.stack(films).mean(0))), 3),
            "single_db": round(float(between(films[0])), 3), "blend_db": round(float(between(blend)), 3),
            "decoded_truth_db": round(float(between(model.decode(z))), 3),
            "sharpness": round(sharp(films[0]), 3), "blend_sharpness": round(sharp(blend), 3),
            "decoded_truth_sharpness": round(sharp(model.decode(z)), 3),
            "distance": measures.frechet(said["sample"], said["truth"]),
            "blend_distance": measures.frechet(said["blend"], said["truth"]), "moving": int(moving.sum())}


def run(folder=None, n=N):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    model, classify = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)[0]
    table = {f"{fps:g}": at(model, classify, fps, regime, n) for regime, fps in enumerate(recipes.INTERPOLATION_FPS)}
    slow, fast = table.values()
    return {"gain_db_7_5": round(slow["mean_db"] - slow["blend_db"], 3),
            "gain_db_30": round(fast["mean_db"] - fast["blend_db"], 3),
            "sharpness_ratio": min(slow["sharpness"], fast["sharpness"]),
            "feature_gain": round(min(row["blend_distance"] / row["distance"] for row in (slow, fast)), 3),
            "n": n, "table": table}
