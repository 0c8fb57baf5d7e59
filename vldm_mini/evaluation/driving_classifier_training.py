"""Training of the classifiers of `driving`, on rendered clips of seeds that no generator sees.

`python -m vldm_mini train classifiers --data driving` runs this, before any generator is trained.
"""
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vldm_mini import machine
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import measures
from vldm_mini.evaluation.driving_classifiers import (
    BoxCounts,
    CarFinder,
    SceneClassifier,
    count_hits,
)
from vldm_mini.evaluation.frechet import frechet_distance
from vldm_mini.training import BatchRandom, Objective, Settings, train
from vldm_mini.weights import CARD, write_text

FRAMES = 8                          # of a video, consecutive key frames
NOISE, FLICKER = 0.3, 0.3           # the largest added in training, of values in [-1, 1]
SHUFFLED = 0.25                     # share of videos whose frames are in a random order
STANDING = 0.5                      # m/s: frames of a slower car have no order
GRID = (32, 64)                     # cells of the car finder

SCENE_SETTINGS = Settings(steps=1400, batch=8, lr=2e-3)
FINDER_SETTINGS = Settings(steps=1600, batch=16, lr=2e-3)
TRAINING_CLIPS = 700


# --------------------------------------------------------------------------------------------------
# The scene classifier.

def corrupt(videos: Tensor, noise: Tensor, flicker: Tensor, grain: Tensor, light: Tensor) -> Tensor:
    """Videos (b t 3 h w) with noise in every pixel and frames brighter or darker, clamped to [-1,
    1].

    noise, flicker (b,): standard deviations. grain (b t 3 h w), light (b t 1 1 1): standard normal.
    """
    noise, flicker = noise.view(-1, 1, 1, 1, 1), flicker.view(-1, 1, 1, 1, 1)
    return (videos + noise * grain + flicker * light).clamp(-1, 1)


@dataclass(frozen=True)
class SceneData:
    """Videos uint8 (n t h w 3); night (n,), cars (n, t), mean speed in m/s (n,), all float."""
    videos: Tensor
    night: Tensor
    cars: Tensor
    speed: Tensor

    def to(self, device: torch.device) -> "SceneData":
        """The same on a device."""
        return SceneData(*(tensor.to(device) for tensor in vars(self).values()))


def scene_data(split: str, n: int) -> SceneData:
    """n rendered clips of a split and what is known of them."""
    clips = driving.clips(split, n, FRAMES)
    truth = [clip.scene.labels(clip.times) for clip in clips]

    def stacked(name: str) -> Tensor:
        return torch.stack([torch.as_tensor(one[name]).float() for one in truth])
    return SceneData(torch.stack([clip.frames for clip in clips]), stacked("night")[:, 0],
                     stacked("cars"), stacked("speed").mean(1))


def scene_loss(classifier: SceneClassifier, data: SceneData) -> Callable[[BatchRandom], tuple]:
    """The loss of training.Objective: light, cars and speed; noise, flicker and order of videos
    that were corrupted. Half of the videos get noise, half flicker."""

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        i = draw.integers(len(data.videos))
        x = video.to_float(data.videos[i])                                      # b t 3 h w
        b, t = x.shape[:2]
        with_noise, with_flicker, with_order = draw.uniform(3).unbind(1)
        # below one half the number itself is the level: u uniform in [0, 0.5) gives 2 u in [0, 1)
        noise_level = torch.where(with_noise < 0.5, 2 * with_noise, 0.0)
        flicker_level = torch.where(with_flicker < 0.5, 2 * with_flicker, 0.0)
        shuffled = with_order < SHUFFLED
        random_order = draw.uniform(t).argsort(1)
        in_order = torch.arange(t, device=x.device).expand(b, t)
        order = torch.where(shuffled[:, None], random_order, in_order)
        each = torch.arange(b, device=x.device)[:, None]
        corrupted = corrupt(x[each, order], NOISE * noise_level, FLICKER * flicker_level,
                            draw.normal(*x.shape[1:]), draw.normal(t, 1, 1, 1))
        frames, whole = classifier(corrupted)

        night = data.night[i, None].expand(b, t)
        moving = (data.speed[i] > STANDING).float()
        speed_error = F.smooth_l1_loss(whole[:, 0], data.speed[i] / driving.MAX_SPEED,
                                       reduction="none")
        total = (F.binary_cross_entropy_with_logits(frames[..., 0], night)
                 + F.smooth_l1_loss(frames[..., 1], data.cars[i[:, None], order])
                 + 3 * F.smooth_l1_loss(frames[..., 2], noise_level[:, None].expand(b, t))
                 + 10 * (speed_error * ~shuffled).mean()
                 + 3 * F.smooth_l1_loss(whole[:, 1], noise_level)
                 + 3 * F.smooth_l1_loss(whole[:, 2], flicker_level)
                 + F.binary_cross_entropy_with_logits(whole[:, 3], shuffled.float(), weight=moving))
        return total, {}
    return loss


# --------------------------------------------------------------------------------------------------
# The car finder.

@dataclass(frozen=True)
class FinderData:
    """Frames uint8 (m h w 3); of each frame the boxes (k, 4), and which are in sight (k,) bool."""
    frames: Tensor
    boxes: list[Tensor]
    in_sight: list[Tensor]


@dataclass(frozen=True)
class FinderTargets:
    """What the finder is to output for m frames of h x w cells.

    heat (m h w) in [0, 1]: 1 at centres of cars, falling around them; values (m 4 h w): offset and
    log size, at centres; centre (m h w) bool; care (m h w): 0 around a car that is too small or too
    hidden to be required, else 1.
    """
    heat: Tensor
    values: Tensor
    centre: Tensor
    care: Tensor

    def to(self, device: torch.device) -> "FinderTargets":
        """The same on a device."""
        return FinderTargets(*(tensor.to(device) for tensor in vars(self).values()))


def finder_data(split: str, n: int, length: int = 4) -> FinderData:
    """All frames of n rendered clips of a split, with their boxes."""
    clips = driving.clips(split, n, length)
    boxes = [torch.from_numpy(clip.scene.boxes(time)) for clip in clips for time in clip.times]
    in_sight = []
    for some in boxes:
        wide = some[:, 2] - some[:, 0] >= driving.MIN_BOX
        in_sight.append(wide & (some[:, 4] >= driving.MIN_VISIBLE))
    return FinderData(torch.cat([clip.frames for clip in clips]),
                      [some[:, :4].float() for some in boxes], in_sight)


def target_map(boxes: Tensor, in_sight: Tensor, h: int = GRID[0],
               w: int = GRID[1]) -> FinderTargets:
    """Targets of one frame (no batch axis): boxes (k, 4), far ones first, in_sight (k,) bool."""
    heat, values = torch.zeros(h, w), torch.zeros(4, h, w)
    centre, care = torch.zeros(h, w, dtype=torch.bool), torch.ones(h, w)
    rows, columns = torch.arange(h)[:, None] + 0.5, torch.arange(w) + 0.5
    for (x0, y0, x1, y1), required in zip(boxes.tolist(), in_sight.tolist()):
        x, y, width, height = (x0 + x1) / 2 * w, (y0 + y1) / 2 * h, x1 - x0, y1 - y0
        near = torch.exp(-((columns - x) / (0.15 * width * w + 0.7)) ** 2
                         - ((rows - y) / (0.15 * height * h + 0.7)) ** 2)
        if not required:
            care = torch.where(near > 0.3, 0.0, care)
            continue
        i, j = min(int(y), h - 1), min(int(x), w - 1)
        heat = torch.maximum(heat, near)
        heat[i, j], centre[i, j] = 1, True
        values[:, i, j] = torch.tensor([x - j, y - i, width, height]).clamp(min=1e-3)
    values[2:] = values[2:].clamp(min=1e-3).log()
    return FinderTargets(heat, values, centre, torch.where(centre, 1.0, care))


def target_maps(data: FinderData) -> FinderTargets:
    """The targets of all frames."""
    maps = [target_map(*pair) for pair in zip(data.boxes, data.in_sight)]
    return FinderTargets(*(torch.stack([vars(one)[name] for one in maps])
                           for name in ("heat", "values", "centre", "care")))


def finder_loss(finder: CarFinder, frames: Tensor,
                targets: FinderTargets) -> Callable[[BatchRandom], tuple]:
    """The loss of training.Objective: focal loss of the centres, L1 of offsets and sizes (Zhou et
    al. 2019, eq. 1 to 3). frames uint8 (m h w 3)."""

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        i = draw.integers(len(frames))
        x = video.to_float(frames[i])                                           # b 3 h w
        # what generators do to frames: a little blur, a little noise
        blur, noise = draw.uniform(2).view(-1, 2, 1, 1, 1).unbind(1)
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, stride=1)
        x = torch.where(blur < 0.3, blurred, x) + 0.08 * noise * draw.normal(*x.shape[1:])
        out = finder(x)
        heat, centre, care = targets.heat[i], targets.centre[i], targets.care[i]
        p = out[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
        at_centres = -((1 - p) ** 2 * p.log() * centre).sum()
        elsewhere = -((1 - heat) ** 4 * p ** 2 * (1 - p).log() * ~centre * care).sum()
        error = ((out[:, 1:] - targets.values[i]).abs() * centre[:, None]).sum((0, 2, 3))
        sizes = error @ torch.tensor([0.3, 0.3, 1.0, 1.0], device=error.device)
        return (at_centres + elsewhere + sizes) / centre.sum().clamp(min=1), {}
    return loss


# --------------------------------------------------------------------------------------------------
# Training, and figures on held-out seeds.

def train_classifiers(folder: str | Path, seed: int = 0, steps: int | None = None,
                      clips: int = TRAINING_CLIPS, resume: bool = True) -> dict:
    """Train both and save them in folder/scene and folder/finder -> classifier_table.

    steps: of each (default: SCENE_SETTINGS, FINDER_SETTINGS); clips: how many to render.
    """
    folder, device = Path(folder), machine.device()
    minutes = {}

    def fit(name: str, model: SceneClassifier | CarFinder, settings: Settings,
            loss: Callable[[BatchRandom], tuple]) -> None:
        settings = replace(settings, seed=seed, steps=steps or settings.steps)
        record = train(folder / name, settings, [Objective(name, model, loss)], resume=resume)
        model.save_pretrained(folder / name)
        minutes[name] = round(record.minutes, 2)

    torch.manual_seed(seed)
    scene, finder = SceneClassifier().to(device), CarFinder().to(device)
    fit("scene", scene, SCENE_SETTINGS,
        scene_loss(scene, scene_data("classifiers", clips).to(device)))
    data = finder_data("classifiers", clips)
    fit("finder", finder, FINDER_SETTINGS,
        finder_loss(finder, data.frames.to(device), target_maps(data).to(device)))
    table = classifier_table(folder) | {"minutes": minutes}
    write_text(folder / "table.json", json.dumps(table, indent=1) + "\n")
    for name in minutes:
        card = CARD_TEXT.format(name=name, seed=seed, table=json.dumps(table, indent=1))
        write_text(folder / name / CARD, card)
    return table


def classifier_table(folder: str | Path, n: int = 100) -> dict:
    """The figures of saved classifiers on n clips of held-out seeds."""
    classifier = SceneClassifier.from_pretrained(Path(folder) / "scene")
    finder = CarFinder.from_pretrained(Path(folder) / "finder")
    scenes, cars = scene_data("held_out", n), finder_data("held_out", n)
    videos = video.to_float(scenes.videos)
    predicted = classifier.classify(videos)
    counts = BoxCounts()
    found = finder.find(video.to_float(cars.frames))
    for boxes, true, in_sight in zip(found, cars.boxes, cars.in_sight):
        counts += count_hits(boxes, true, in_sight)
    return {"night_accuracy": float((predicted.night == scenes.night.bool()).float().mean()),
            "cars_spearman": measures.spearman(predicted.cars.mean(1), scenes.cars.mean(1)),
            "cars_mae": float((predicted.cars - scenes.cars).abs().mean()),
            "speed_spearman": measures.spearman(predicted.speed, scenes.speed),
            "speed_mae": float((predicted.speed - scenes.speed).abs().mean()),
            "finder_precision": counts.precision, "finder_recall": counts.recall,
            "videos": len(scenes.videos), "frames": len(cars.frames),
            **distance_ranks(classifier, videos)}


def distance_ranks(classifier: SceneClassifier, videos: Tensor,
                   levels: Sequence[float] = (0, 0.02, 0.04, 0.07, 0.1, 0.14)) -> dict:
    """Do Fréchet distances rise with noise and with flicker that are added to videos?

    videos (n t 3 h w). Distances of corrupted videos from the same videos uncorrupted, by level,
    and their rank correlation with the level.
    """
    generator = torch.Generator().manual_seed(1)
    grain = torch.randn(videos.shape, generator=generator)
    light = torch.randn(*videos.shape[:2], 1, 1, 1, generator=generator)
    real, none, figures = classifier.classify(videos), torch.zeros(len(videos)), {}
    for name in ("noise", "flicker"):
        predictions = []
        for level in levels:
            noise = none + level if name == "noise" else none
            flicker = none + level if name == "flicker" else none
            predictions.append(classifier.classify(corrupt(videos, noise, flicker, grain, light)))
        for kind in ("video", "frame"):
            def features(prediction: object, kind: str = kind) -> Tensor:
                return getattr(prediction, f"{kind}_features").flatten(0, -2)
            distances = [frechet_distance(features(one), features(real)) for one in predictions]
            figures[f"{kind}s_{name}"] = distances
            figures[f"{kind}s_{name}_spearman"] = measures.spearman(distances, levels)
    return figures


CARD_TEXT = """\
# vldm_mini: {name} of `driving`

Trained on rendered clips of seeds of the split "classifiers", which no generator sees, before any
generator. For measuring generators of `driving` at 64x128, and nothing else.

Recipe: `python -m vldm_mini train classifiers --data driving`, seed {seed}. Licence: Apache-2.0.

On held-out seeds:

```
{table}
```
"""
