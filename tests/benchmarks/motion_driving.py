"""Do generated driving clips move as much, and as smoothly, as held-out real ones?

video_ratio, jerk_ratio: median frame-to-frame change and jerk of 200 generated clips over those
of 200 held-out ones, by day and by night; 0.7 to 1.3 is good. image_ratio, image_jerk_ratio:
alpha = 1, which must fall outside in one of the two. speed_spearman: the scene classifier's speed
of held-out clips against the truth; `speed`: the generated clips' speeds beside it. Fréchet
distances of videos and of frames with floor, interval and alpha = 1.
"""
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.datasets import video
from vldm_mini.evaluation import driving_samples, measures
from vldm_mini.evaluation.baselines import baselines
from vldm_mini.evaluation.driving_classifiers import ScenePrediction
from vldm_mini.evaluation.frechet import frechet_report

from ._common import shipped_folder
from .motion_actions import measure

QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def ratios(found: dict, night: Tensor, real: dict, real_night: Tensor) -> dict:
    """{"motion": {light: ratio of medians}, "jerk": ...}."""
    out = {}
    for name in ("motion", "jerk"):
        out[name] = {}
        for k, light in enumerate(("day", "night")):
            ratio = found[name][night == k].median() / real[name][real_night == k].median()
            out[name][light] = round(float(ratio), 3)
    return out


def reports(predictions: dict[str, ScenePrediction], kind: str) -> dict:
    """frechet_report against "real" of every other entry; kind: "video" or "frame"."""
    def features(prediction: ScenePrediction) -> Tensor:
        return getattr(prediction, f"{kind}_features").flatten(0, -2)
    real = features(predictions["real"])
    return {name: frechet_report(features(one), real, torch.Generator().manual_seed(0))
            for name, one in predictions.items() if name != "real"}


def run(folder: Path | None = None, n: int = driving_samples.N) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    classifier, _ = driving_samples.classifiers(folder)
    generated, labels = driving_samples.generated(folder, n=n)
    image, _ = driving_samples.generated(folder, alpha=1, n=n)
    real, clips = driving_samples.real(n)
    night = torch.tensor([int(clip.scene.night) for clip in clips])
    x = {name: video.to_float(some) for name, some in
         (("video", generated), ("image", image), ("real", real))}
    measured = {name: measure(videos) for name, videos in x.items()}
    found = {name: ratios(measured[name], labels[:, 0], measured["real"], night)
             for name in ("video", "image")}
    beside = {name: ratios(measure(videos), night, measured["real"], night) for name, videos in
              baselines(x["real"], torch.Generator().manual_seed(0)).items()}
    predictions = {name: classifier.classify(videos) for name, videos in x.items()}
    others = video.to_float(driving_samples.real(n, first=6000)[0])
    predictions["real, other seeds"] = classifier.classify(others)
    truth = torch.tensor([float(clip.scene.labels(clip.times)["speed"].mean()) for clip in clips])
    speeds = {name: [round(v, 2) for v in one.speed.quantile(QUANTILES).tolist()]
              for name, one in predictions.items()}
    return {"video_ratio": found["video"]["motion"], "jerk_ratio": found["video"]["jerk"],
            "image_ratio": found["image"]["motion"], "image_jerk_ratio": found["image"]["jerk"],
            "speed_spearman": round(measures.spearman(predictions["real"].speed, truth), 4),
            "n": n, "speed": speeds, "video_distance": reports(predictions, "video"),
            "frame_distance": reports(predictions, "frame"), "beside": beside}
