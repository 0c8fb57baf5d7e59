"""Do generated drives move as much, and as smoothly, as held-out real ones?

video_ratio, jerk_ratio: median frame-to-frame change and jerk of 200 generated films over those of 200 held-out ones
of the same labels' mix, by day and by night; 0.7 to 1.3 is good. image_ratio, image_jerk_ratio: alpha = 1, which must
fall outside in one of the two. speed_spearman: the classify's speed of held-out films against the truth; `speed` the
generated films' speeds beside it. Fréchet distances of films and of frames with floor, interval and alpha = 1.
"""
import torch

from vldm_mini import weights
from vldm_mini.evaluation import action_classifiers, driving_samples, measures

from .motion_actions import measure


def ratios(found, night, real, real_night):
    """{"motion": {light: ratio}, "jerk": ...}."""
    return {name: {light: round(float(found[name][night == k].median() / real[name][real_night == k].median()), 3)
                   for k, light in enumerate(("day", "night"))} for name in ("motion", "jerk")}


def run(folder=None, n=driving_samples.N):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    classify, _ = driving_samples.classifiers(folder)
    video, labels = driving_samples.films(folder, n=n)
    image, _ = driving_samples.films(folder, alpha=1, n=n)
    real, clips = driving_samples.real(n)
    night = torch.tensor([int(clip.scene.night) for clip in clips])
    x = {"video": driving_samples.floats(video), "image": driving_samples.floats(image), "real": driving_samples.floats(real)}
    moved = {name: measure(films) for name, films in x.items()}
    said = {name: classify.classify(films) for name, films in x.items()}
    found = {name: ratios(moved[name], labels[:, 0], moved["real"], night) for name in ("video", "image")}
    other = driving_samples.floats(driving_samples.real(n, first=6000)[0])
    beside = {name: ratios(measure(films), night, moved["real"], night) for name, films in
              action_classifiers.baselines(x["real"], torch.Generator().manual_seed(0)).items()}
    said["real, other seeds"] = classify.classify(other)
    report = lambda one, kind: driving_samples.frechet_report(getattr(one, kind).flatten(0, -2),                # noqa: E731
                                                      getattr(said["real"], kind).flatten(0, -2),
                                                      torch.Generator().manual_seed(0))
    truth = torch.tensor([float(clip.scene.labels(clip.times)["speed"].mean()) for clip in clips])
    return {"video_ratio": found["video"]["motion"], "jerk_ratio": found["video"]["jerk"],
            "image_ratio": found["image"]["motion"], "image_jerk_ratio": found["image"]["jerk"],
            "speed_spearman": round(measures.spearman(said["real"].speed, truth), 4), "n": n,
            "speed": {name: [round(v, 2) for v in one.speed.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()]
                      for name, one in said.items()},
            "video_distance": {name: report(one, "films") for name, one in said.items() if name != "real"},
            "frame_distance": {name: report(one, "frames") for name, one in said.items() if name != "real"},
            "beside": beside}
