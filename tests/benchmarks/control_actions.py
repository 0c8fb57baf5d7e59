"""Share of generated clips of `actions` that show the requested person and action, in order.

By classifiers trained on real clips only. action_accuracy, person_accuracy, order_accuracy: of
200 clips over trained combinations, the share whose action and person are classified as
requested, and whose frames are classified as in order. held_out_accuracy: action and person both,
of 40 clips over combinations held out from the generator. image_*: the same noise through the
image model (alpha = 1). unguided_*: 100 clips without temporal guidance. real_*: real windows
held out from the classifiers. Beside them real windows after the autoencoder, and baselines that
must fail on order.
"""
from collections.abc import Sequence

import torch
from scipy.stats import binomtest
from torch import Tensor

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples
from vldm_mini.evaluation.action_classifiers import (
    ActionClassifiers,
    classifier_report,
    held_out_windows,
)
from vldm_mini.evaluation.action_samples import Samples
from vldm_mini.evaluation.baselines import baselines
from vldm_mini.pipeline import VideoLDM

SHARES = ("action", "person", "both", "in_order")


def shares(report: dict) -> dict:
    """Counts -> shares, with Wilson's 95 % intervals."""
    found, interval = {}, {}
    for name in SHARES:
        found[name] = round(report[name] / report["n"], 4)
        limits = binomtest(report[name], report["n"]).proportion_ci(method="wilson")
        interval[name] = [round(limit, 3) for limit in limits]
    return {**found, "interval": interval, "counts": report}


def of_samples(classifiers: ActionClassifiers, samples: Samples) -> dict:
    """Samples -> shares, pooled and of every generation seed."""
    def report(keep: Tensor) -> dict:
        return classifier_report(classifiers, video.to_float(samples.videos[keep]),
                                 samples.actions[keep], samples.persons[keep])
    by_seed = {int(seed): report(samples.seeds == seed) for seed in samples.seeds.unique()}
    everything = torch.ones_like(samples.seeds, dtype=torch.bool)
    return {**shares(report(everything)), "by_seed": by_seed}


def by_request(classifiers: ActionClassifiers, samples: Samples) -> dict:
    """{"person p, action": [both classified as requested, of]}."""
    found = classifiers.classify(samples.float())
    right = (found.action == samples.actions) & (found.person == samples.persons)
    rows: dict[str, list] = {}
    for action, person, hit in zip(samples.actions.tolist(), samples.persons.tolist(),
                                   right.tolist()):
        row = rows.setdefault(f"person {person}, {video.ACTIONS[action]}", [0, 0])
        row[0] += hit
        row[1] += 1
    return rows


@torch.no_grad()
def through_autoencoder(model: VideoLDM, videos: Tensor, batch: int = 16) -> Tensor:
    """Videos (n t 3 h w) encoded and decoded, which no generator can surpass. Same shape."""
    parts = []
    for part in videos.split(batch):
        z = model.autoencoder.encode(part.flatten(0, 1)).unflatten(0, part.shape[:2])
        parts.append(model.decode(z))
    return torch.cat(parts)


def beside(model: VideoLDM, samples: Samples, classifiers: ActionClassifiers,
           clips: Sequence[video.VideoClip]) -> dict:
    """The same shares for real windows, and for baselines of real and of generated ones."""
    real, actions, persons = held_out_windows(clips, classifiers.config)
    rows = {}

    def add(name: str, videos: Tensor, actions: Tensor, persons: Tensor) -> None:
        rows[name] = shares(classifier_report(classifiers, videos, actions, persons))
    add("real", real, actions, persons)
    add("real, autoencoded", through_autoencoder(model, real), actions, persons)
    for name, videos in baselines(real, torch.Generator().manual_seed(0)).items():
        add(f"real, {name}", videos, actions, persons)
    for name, videos in baselines(samples.float(), torch.Generator().manual_seed(0)).items():
        add(f"generated, {name}", videos, samples.actions, samples.persons)
    return rows


def run(model: VideoLDM | None = None, samples: dict[str, Samples] | None = None,
        classifiers: ActionClassifiers | None = None,
        clips: Sequence[video.VideoClip] | None = None) -> dict:
    """All figures; arguments are for tests."""
    if samples is None:
        model, samples = action_samples.all_samples()
    if classifiers is None:
        folder = weights.shipped(action_samples.WEIGHTS)
        classifiers = ActionClassifiers.from_pretrained(folder / "classifiers")
    rows = beside(model, samples["video"], classifiers, clips or video.actions())
    found = {name: of_samples(classifiers, part) for name, part in samples.items()}
    return {"action_accuracy": found["video"]["action"],
            "person_accuracy": found["video"]["person"],
            "held_out_accuracy": found["held_out"]["both"],
            "image_action_accuracy": found["image"]["action"],
            "order_accuracy": found["video"]["in_order"],
            "real_action_accuracy": rows["real"]["action"],
            "real_order_accuracy": rows["real"]["in_order"], "n": len(samples["video"].videos),
            "image_person_accuracy": found["image"]["person"],
            "image_order_accuracy": found["image"]["in_order"],
            "real_person_accuracy": rows["real"]["person"],
            "held_out_order_accuracy": found["held_out"]["in_order"],
            "unguided_order_accuracy": found["unguided"]["in_order"],
            "generated": found, "beside": rows,
            "held_out_by_request": by_request(classifiers, samples["held_out"]),
            "by_request": by_request(classifiers, samples["video"]),
            "settings": action_samples.settings(model)}
