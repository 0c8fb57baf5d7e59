"""Are frames generated between two true key frames better than linear interpolation of the two?

Held-out clips, 80 of two true key frames each, windows of five frames at 7.5 a second (regime 0)
and at 30 (regime 1), the renderer's own frames between as the truth. Scored where something
moves: the half of the clips whose true frames change most. gain_db_7_5, gain_db_30: PSNR of the
mean of 4 samples minus that of linear interpolation between the same decoded key frames, frames
between only, so that given frames count for nothing. sharpness_ratio: gradient energy of single
samples over the truth's, the worse of both rates; beside it that of linear interpolation, and of
the truth, encoded and decoded, which is the most that latents allow. feature_gain: Fréchet
distance of the videos' features to the truth, linear interpolation over single samples, the worse
of both rates.
"""
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.evaluation.driving_classifiers import SceneClassifier
from vldm_mini.evaluation.flicker import gradient_energy
from vldm_mini.pipeline import VideoLDM
from vldm_mini.training.stages.context import INTERPOLATION_FPS

from ._common import feature_distance, number, shipped_folder

N, SAMPLES, SEED = 80, 4, 5


def true_videos(fps: float, n: int = N) -> tuple[list, Tensor]:
    """-> clips, videos (n 5 3 64 128) in [-1, 1]."""
    seeds = driving.seeds("held_out", n, first=30_000)
    clips = [driving.DrivingClip(seed, 5, 64, fps, start=3 * (seed % 3)) for seed in seeds]
    return clips, torch.stack([video.to_float(clip.frames) for clip in clips])


def linear(ends: Tensor) -> Tensor:
    """Two frames (n 2 3 h w) -> five (n 5 3 h w), linear interpolation between them."""
    first, last = ends.split(1, dim=1)
    share = torch.linspace(0, 1, 5)[None, :, None, None, None]
    return (1 - share) * first + share * last


@torch.no_grad()
def of_regime(model: VideoLDM, classifier: SceneClassifier, fps: float, regime: int,
              n: int = N) -> dict:
    """All figures of one regime."""
    clips, x = true_videos(fps, n)
    labels = driving_samples.labels_of(clips)
    z = rearrange(model.autoencoder.encode(x.flatten(0, 1)), "(b t) c h w -> b t c h w", b=n)
    ends = z[:, [0, -1]]
    sampled = torch.stack([model.decode(model.interpolate(ends, labels, regime, seed=SEED + k))
                           for k in range(SAMPLES)])
    interpolated, decoded_truth = linear(model.decode(ends)), model.decode(z)
    change = x.diff(dim=1).square().flatten(1).mean(1)
    moving = change >= change.median()

    def between_db(videos: Tensor) -> float:
        return number(measures.psnr(videos[moving, 1:-1], x[moving, 1:-1]).mean(), 3)

    def sharpness(videos: Tensor) -> float:
        ratio = gradient_energy(videos[moving, 1:-1]) / gradient_energy(x[moving, 1:-1])
        return number(ratio.median(), 3)
    of_true = classifier.classify(x)
    distance = feature_distance(classifier.classify(sampled[0]), of_true, "video")
    linear_distance = feature_distance(classifier.classify(interpolated), of_true, "video")
    return {"mean_db": between_db(sampled.mean(0)), "single_db": between_db(sampled[0]),
            "linear_db": between_db(interpolated), "decoded_truth_db": between_db(decoded_truth),
            "sharpness": sharpness(sampled[0]), "linear_sharpness": sharpness(interpolated),
            "decoded_truth_sharpness": sharpness(decoded_truth), "distance": distance,
            "linear_distance": linear_distance, "moving": int(moving.sum())}


def run(folder: Path | None = None, n: int = N) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    model, (classifier, _) = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)
    table = {f"{fps:g}": of_regime(model, classifier, fps, regime, n)
             for regime, fps in enumerate(INTERPOLATION_FPS)}
    slow, fast = table.values()
    gains = [row["linear_distance"] / row["distance"] for row in (slow, fast)]
    return {"gain_db_7_5": round(slow["mean_db"] - slow["linear_db"], 3),
            "gain_db_30": round(fast["mean_db"] - fast["linear_db"], 3),
            "sharpness_ratio": min(slow["sharpness"], fast["sharpness"]),
            "feature_gain": round(min(gains), 3), "n": n, "table": table}
