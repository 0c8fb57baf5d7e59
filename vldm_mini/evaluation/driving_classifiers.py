"""The classifiers of `driving`: networks that say what a film shows, trained on rendered films before any generator was.

    classify = SceneClassifier.from_pretrained(folder)        # light, cars, speed of a film; features for Fréchet distances
    finder = CarFinder.from_pretrained(folder)        # boxes of the cars in a frame

Paper: section 4 asks I3D and people. MINI: neither speaks of 64x128, so that the classifiers are our own and small, and
learn from seeds that no generator sees. (Those of `actions` stand in `metrics`.) Chapters 09 and 12 use them.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vldm_mini.blocks import ResBlock, group_norm
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_classifiers, measures
from vldm_mini.training import Objective, Settings, rng, train
from vldm_mini.weights import CARD, Pretrained, write_text

FRAMES = 8                                    # of a film, one key frame after the other
NOISE, FLICKER = 0.3, 0.3                     # the most that is added in training, of values in [-1, 1]
MAX_CARS = 8


def _conv(c_in, c_out, stride=1, dims=2):
    make = nn.Conv2d if dims == 2 else nn.Conv3d
    stride = stride if dims == 2 else (1, stride, stride)
    return [make(c_in, c_out, 3, stride=stride, padding=1), group_norm(c_out), nn.SiLU()]


# ---------------------------------------------------------------------------------------------------------------------
# What a film shows.

@dataclass(frozen=True)
class SceneClassifierConfig:
    channels: tuple = (24, 48, 64)


@dataclass(frozen=True)
class ScenePrediction:
    """Of n films: night (n,) bool; cars (n, t) in sight in each frame; speed (n,) m/s; in float64 the features of the
    frames (n, t, 64) and of the films (n, 64)."""
    night: torch.Tensor
    cars: torch.Tensor
    speed: torch.Tensor
    frames: torch.Tensor
    films: torch.Tensor


class SceneClassifier(Pretrained, nn.Module):
    """Looks at each frame, then at how what it saw changes. Films (b t 3 64 128) in [-1, 1].

    MINI: it also learns how much noise and flicker were added and if the frames are in order: features that know of
    light, cars and speed alone would not mind a film that flickers, and a distance made of them would not either.
    """
    config_class = SceneClassifierConfig

    def __init__(self, config=SceneClassifierConfig()):
        super().__init__()
        self.config, (a, b, c) = config, config.channels
        self.see = nn.Sequential(nn.PixelUnshuffle(2), *_conv(12, a), *_conv(a, b, 2))                  # b/frame 16 32
        self.frame = nn.Sequential(ResBlock(b, b), *_conv(b, c, 2), *_conv(c, c))
        self.film = nn.Sequential(*_conv(b, c, 2, 3), *_conv(c, c, 2, 3), *_conv(c, c, 1, 3))
        self.of_frame = nn.Linear(c, 3)                                                   # light, cars, noise
        self.of_film = nn.Linear(c, 4)                                                    # speed, noise, flicker, order

    def features(self, films):
        """-> of the frames (b t c), of the film (b c)."""
        if films.ndim != 5 or films.shape[1] < 2 or films.shape[2:] != (3, 64, 128):
            raise ValueError("the classify wants films (b, t, 3, 64, 128) of two frames or more, "
                             f"got {tuple(films.shape)}")
        b = len(films)
        seen = self.see(rearrange(films, "b t c h w -> (b t) c h w"))
        frames = rearrange(self.frame(seen).mean((2, 3)), "(b t) c -> b t c", b=b)
        return frames, self.film(rearrange(seen, "(b t) c h w -> b c t h w", b=b)).mean((2, 3, 4))

    def forward(self, films):
        """-> answers of the frames (b t 3), of the films (b 4)."""
        frames, film = self.features(films)
        return self.of_frame(frames), self.of_film(film)

    @torch.no_grad()
    def classify(self, films, batch=16):
        """(n t 3 64 128) in [-1, 1] -> ScenePrediction."""
        frames, film = (torch.cat(x) for x in zip(*[self.features(part.float()) for part in films.split(batch)]))
        seen, told = self.of_frame(frames), self.of_film(film)
        speed = (told[:, 0] * driving.MAX_SPEED).clamp(0, driving.MAX_SPEED)
        return ScenePrediction(seen[..., 0].mean(1) > 0, seen[..., 1].clamp(min=0), speed, frames.double(), film.double())


def corrupt(films, noise, flicker, generators):
    """Films (b t 3 h w) with noise of that deviation in every pixel, and frames brighter or darker, each by a number of
    deviation `flicker`, both (b,). generators: one a film."""
    shape = films.shape[1:]
    grain = torch.stack([torch.randn(shape, generator=g) for g in generators])
    light = torch.stack([torch.randn(shape[0], 1, 1, 1, generator=g) for g in generators])
    at = lambda x: x[:, None, None, None, None]                                                         # noqa: E731
    return (films + at(noise) * grain + at(flicker) * light).clamp(-1, 1)


def _drives(split, n):
    """-> films uint8 (n t h w 3), night (n,), cars (n, t), mean speed (n,)."""
    clips = driving.clips(split, n, FRAMES)
    films, truth = torch.stack([clip.frames for clip in clips]), [clip.scene.labels(clip.times) for clip in clips]
    of = lambda name: torch.stack([torch.as_tensor(one[name]).float() for one in truth])                # noqa: E731
    return films, of("night")[:, 0], of("cars"), of("speed").mean(1)


def classifier_loss(classify, drives, seed):
    """The loss of training.Objective: light, cars, speed of films; noise, flicker, order of films that were spoilt."""
    films, night, cars, speed = drives

    def loss(batch):
        step, samples = batch.step, batch.samples
        draw = [rng(seed, step, sample) for sample in samples]
        i = torch.cat([torch.randint(len(films), (1,), generator=g) for g in draw])
        x, u = video.to_float(films[i]), torch.stack([torch.rand(4, generator=g) for g in draw])
        # half of the films with noise, half with flicker, a quarter with frames in any order
        noise, flicker = (u[:, k] * most * (u[:, k] < 0.5) * 2 for k, most in ((0, NOISE), (1, FLICKER)))
        mixed = u[:, 2] < 0.25
        orders = torch.stack([action_classifiers.shuffled(x.shape[1], g) for g in draw])
        orders = torch.where(mixed[:, None], orders, torch.arange(x.shape[1]))
        each = torch.arange(len(x))[:, None]
        frames, film = classify(corrupt(x[each, orders], noise, flicker, draw))
        moving = speed[i] > 0.5                                                         # who stands has no order
        total = (F.binary_cross_entropy_with_logits(frames[..., 0], night[i, None].expand_as(frames[..., 0]))
                 + F.smooth_l1_loss(frames[..., 1], cars[i[:, None], orders])
                 + 3 * F.smooth_l1_loss(frames[..., 2], (noise / NOISE)[:, None].expand_as(frames[..., 2]))
                 + 10 * (F.smooth_l1_loss(film[:, 0], speed[i] / driving.MAX_SPEED, reduction="none") * ~mixed).mean()
                 + 3 * F.smooth_l1_loss(film[:, 1], noise / NOISE) + 3 * F.smooth_l1_loss(film[:, 2], flicker / FLICKER)
                 + F.binary_cross_entropy_with_logits(film[:, 3], mixed.float(), weight=moving.float()))
        return total, {}
    return loss


# ---------------------------------------------------------------------------------------------------------------------
# Where the cars are.

@dataclass(frozen=True)
class CarFinderConfig:
    channels: tuple = (32, 64)
    threshold: float = 0.4


class CarFinder(Pretrained, nn.Module):
    """Boxes as points with sizes (Zhou et al. 2019, arXiv 1904.07850): each place of 32x64 says if the middle of a car
    lies there, where in it, and how wide and high the car is. Frames (b 3 64 128) in [-1, 1]."""
    config_class = CarFinderConfig

    def __init__(self, config=CarFinderConfig()):
        super().__init__()
        self.config, (a, b) = config, config.channels
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), *_conv(12, a), ResBlock(a, a))
        self.coarse = nn.Sequential(*_conv(a, b, 2), ResBlock(b, b), *_conv(b, b, 2), ResBlock(b, b), ResBlock(b, b),
                                    nn.Conv2d(b, 4 * b, 1), nn.PixelShuffle(2), ResBlock(b, b),
                                    nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2))
        self.out = nn.Sequential(ResBlock(a, a), group_norm(a), nn.SiLU(), nn.Conv2d(a, 5, 1))
        nn.init.constant_(self.out[-1].bias, -2.0)

    def forward(self, frames):
        """-> (b 5 32 64): logit of a middle, its place in the square (right, down), log of width and height."""
        if frames.ndim != 4 or frames.shape[1:] != (3, 64, 128):
            raise ValueError(f"the finder wants frames (b, 3, 64, 128), got {tuple(frames.shape)}")
        x = self.fine(frames)
        return self.out(x + self.coarse(x))

    @torch.no_grad()
    def find(self, frames, batch=64):
        """Frames (n 3 64 128) in [-1, 1] -> for each the boxes (m, 5): x0 y0 x1 y1 in [0, 1], score; best first."""
        return [boxes for part in frames.split(batch) for boxes in self._decode(self(part.float()))]

    def _decode(self, out):
        score = out[:, 0].sigmoid()
        peak = (score == F.max_pool2d(score[:, None], 3, 1, 1)[:, 0]) & (score > self.config.threshold)
        h, w = score.shape[1:]
        for b in range(len(out)):
            i, j = peak[b].nonzero(as_tuple=True)
            (right, down, wide, high), s = out[b, 1:, i, j], score[b, i, j]
            x, y, wide, high = (j + right) / w, (i + down) / h, wide.exp() / 2, high.exp() / 2
            boxes = torch.stack([x - wide, y - high, x + wide, y + high], -1).clamp(0, 1)
            boxes = torch.cat([boxes, s[:, None]], 1)[s.argsort(descending=True)]
            yield _apart(boxes[boxes[:, 2] - boxes[:, 0] >= 0.9 * driving.MIN_BOX])


def _apart(boxes, most=0.5):
    """Boxes, best first, without those that lie on a better one."""
    kept = []
    for box in boxes:
        if not kept or float(measures.iou(box[None, :4], torch.stack(kept)[:, :4]).max()) < most:
            kept.append(box)
    return torch.stack(kept) if kept else boxes[:0]


def target_map(boxes, seen, h=32, w=64):
    """What a frame should answer: boxes (n, 4) far ones first, seen (n,) bool -> heat (h w), values (4 h w) at middles,
    middle (h w) bool, care (h w): 0 where a car is that is too small or too hidden to be asked for."""
    heat, values, middle, care = torch.zeros(h, w), torch.zeros(4, h, w), torch.zeros(h, w).bool(), torch.ones(h, w)
    ys, xs = torch.arange(h)[:, None] + 0.5, torch.arange(w) + 0.5
    for (x0, y0, x1, y1), yes in zip(boxes.tolist(), seen.tolist()):
        x, y, wide, high = (x0 + x1) / 2 * w, (y0 + y1) / 2 * h, x1 - x0, y1 - y0
        near = torch.exp(-((xs - x) / (0.15 * wide * w + 0.7)) ** 2 - ((ys - y) / (0.15 * high * h + 0.7)) ** 2)
        i, j = min(int(y), h - 1), min(int(x), w - 1)
        if yes:
            heat, middle[i, j], care[i, j] = torch.maximum(heat, near), True, 1
            heat[i, j] = 1
            values[:, i, j] = torch.tensor([x - j, y - i, wide, high]).clamp(min=1e-3)
        else:
            care = torch.where(near > 0.3, 0.0, care)
    values[2:] = values[2:].clamp(min=1e-3).log()
    return heat, values, middle, torch.where(middle, 1.0, care)


def _frames(split, n, length=4):
    """-> frames uint8 (m h w 3), and of each the boxes (k, 4) and which of them are in sight (k,)."""
    clips = driving.clips(split, n, length)
    films = torch.cat([clip.frames for clip in clips])
    boxes = [torch.from_numpy(clip.scene.boxes(time)) for clip in clips for time in clip.times]
    seen = [(b[:, 2] - b[:, 0] >= driving.MIN_BOX) & (b[:, 4] >= driving.MIN_VISIBLE) for b in boxes]
    return films, [b[:, :4].float() for b in boxes], seen


def finder_loss(finder, found, seed):
    """The loss of training.Objective: focal loss of the middles, L1 of insertion_points and sizes (Zhou et al. 2019, eq. 1 to 3)."""
    films, boxes, seen = found

    def loss(batch):
        step, samples = batch.step, batch.samples
        draw = [rng(seed, step, sample) for sample in samples]
        i = torch.cat([torch.randint(len(films), (1,), generator=g) for g in draw])
        heat, values, middle, care = (torch.stack(x) for x in zip(*[target_map(boxes[k], seen[k]) for k in i.tolist()]))
        x = video.to_float(films[i][:, None])[:, 0]
        u = torch.stack([torch.rand(2, generator=g) for g in draw])
        grain = torch.stack([torch.randn(x.shape[1:], generator=g) for g in draw])
        # what generators do to frames: a little noise, a little blur
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)
        x = torch.where((u[:, 0] < 0.3)[:, None, None, None], blurred, x)
        out = finder(x + 0.08 * u[:, 1, None, None, None] * grain)
        p = out[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
        hit = -((1 - p) ** 2 * p.log() * middle).sum()
        miss = -((1 - heat) ** 4 * p ** 2 * (1 - p).log() * ~middle * care).sum()
        insertion_points = ((out[:, 1:] - values).abs() * middle[:, None]).sum((0, 2, 3)) @ torch.tensor([0.3, 0.3, 1.0, 1.0])
        return (hit + miss + insertion_points) / middle.sum().clamp(min=1), {}
    return loss


def hits(found, true, seen, least=0.4):
    """Boxes found (n, 5), best first, against those of the frame (m, 4) -> (hits, strays, missed).

    A hit: IoU `least` with a car in sight that no better box has. A box on another car is neither hit nor stray.
    """
    left, hit, stray = seen.clone(), 0, 0
    for box in found:
        over = measures.iou(box[None, :4], true)[0] if len(true) else torch.zeros(0)
        best = torch.where(left, over, torch.zeros_like(over))
        if len(over) and float(best.max()) >= least:
            left[int(best.argmax())] = False
            hit += 1
        else:
            stray += not (len(over) and float(torch.where(seen, torch.zeros_like(over), over).max()) >= least)
    return hit, stray, int(left.sum())


# ---------------------------------------------------------------------------------------------------------------------
# Training, and what they say of films they have not seen.

SCENE_SETTINGS = Settings(steps=1400, batch=8, lr=2e-3)
FINDER_SETTINGS = Settings(steps=1600, batch=16, lr=2e-3)


def train_classifiers(folder, seed=0, steps=None, drives=700, resume=True):
    """Train both and save them in folder/classify and folder/finder -> the figures on held-out seeds."""
    from dataclasses import replace
    folder, minutes = Path(folder), {}
    for name, model, settings, data, make in (("scene", SceneClassifier(), SCENE_SETTINGS, _drives, classifier_loss),
                                              ("finder", CarFinder(), FINDER_SETTINGS, _frames, finder_loss)):
        torch.manual_seed(seed)
        model = type(model)()
        settings = replace(settings, seed=seed, steps=steps or settings.steps)
        record = train(folder / name, settings, [Objective(name, model, make(model, data("classifiers", drives), seed))],
                       resume=resume)
        model.save_pretrained(folder / name)
        minutes[name] = record.minutes
    table = classifier_table(folder) | {"minutes": minutes}
    write_text(folder / "table.json", json.dumps(table, indent=1) + "\n")
    for name in minutes:
        write_text(folder / name / CARD, CARD_TEXT.format(name=name, seed=seed, table=json.dumps(table, indent=1)))
    return table


def classifier_table(folder, n=100):
    """The figures of saved classifiers on held-out seeds."""
    classify = SceneClassifier.from_pretrained(Path(folder) / "scene")
    finder = CarFinder.from_pretrained(Path(folder) / "finder")
    films, night, cars, speed = _drives("held_out", n)
    said = classify.classify(video.to_float(films))
    frames, boxes, seen = _frames("held_out", n)
    counts = [hits(found, true, yes) for found, true, yes in
              zip(finder.find(video.to_float(frames[:, None])[:, 0]), boxes, seen)]
    hit, stray, missed = (sum(x) for x in zip(*counts))
    return {"night_accuracy": float((said.night == night.bool()).float().mean()),
            "cars_spearman": measures.spearman(said.cars.mean(1), cars.mean(1)),
            "cars_mae": float((said.cars - cars).abs().mean()), "speed_spearman": measures.spearman(said.speed, speed),
            "speed_mae": float((said.speed - speed).abs().mean()), "finder_precision": hit / max(1, hit + stray),
            "finder_recall": hit / max(1, hit + missed), "films": len(films), "frames": len(frames),
            **distance_ranks(classify, video.to_float(films))}


def distance_ranks(classify, films, levels=(0, 0.02, 0.04, 0.07, 0.1, 0.14)):
    """Do the distances extend with noise and with flicker that are added to films? Rank correlations with the level, and
    the distances, of films spoilt from the same films as they are."""
    real, zero, found = classify.classify(films), torch.zeros(len(films)), {}
    for name in ("noise", "flicker"):
        at = lambda level: (zero + level, zero) if name == "noise" else (zero, zero + level)       # noqa: B023, E731
        said = [classify.classify(corrupt(films, *at(level), [rng(1, 0, k) for k in range(len(films))])) for level in levels]
        for kind in ("films", "frames"):
            distances = [measures.frechet(getattr(one, kind).flatten(0, -2), getattr(real, kind).flatten(0, -2))
                         for one in said]
            found[f"{kind}_{name}"] = distances
            found[f"{kind}_{name}_spearman"] = measures.spearman(distances, levels)
    return found


CARD_TEXT = """\
# vldm_mini: {name} of `driving`

Trained on rendered films of seeds of the split "classifiers", which no generator sees, before any generator was. For
measuring generators of `driving` at 64x128, and nothing else.

Recipe: `python -m vldm_mini train classifiers --data driving`, seed {seed}. Licence: Apache-2.0.

On held-out seeds:

```
{table}
```
"""
