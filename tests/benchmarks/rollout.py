"""Does a drive of 4.5 minutes stay a drive? Four rollouts of 506 key frames, 8 steps a window: memory, motion, labels, drift, loops.

As shipped, and without guidance, and with noise augmentation. Decoded and written to a film part by part.
memory_growth_mb: resident memory at the end minus at 30 s of film, of the process. In the last 60 s: motion_ratio_last,
the median change of a frame over that of held-out drives of equal labels; label_drop_points: how many points fewer frames
are of the light asked for, and the rank correlation of cars is lower, than in the first 60 s (the larger). Drifts: mean
brightness, gradient energy, mean distance of the colour channels, last 60 s over first 60 s, minus 1 (the largest of the
four in size). loops: windows of 8 frames that are nearer to an earlier window of their film than any two windows of a
rendered drive are to one another. Beside it the same of rendered drives, and of a frozen film.
"""
import math
from pathlib import Path

import torch

from vldm_mini import metrics, show, weights
from vldm_mini.datasets import driving, video
from vldm_mini.pipeline import VideoLDM

from . import _drives, _samples

FRAMES, MINUTE, SEED, STEPS = 506, 112, 21, 8          # 4.5 minutes and 60 s at 1.875 frames a second
ASKED = (dict(light="day", cars=0), dict(light="day", cars=3), dict(light="night", cars=1), dict(light="night", cars=3))
ARMS = {"shipped": {}, "no guidance": {"guidance": 1.0}, "noise augmentation": {"augment": 60}}


def resident_mb():
    """Resident memory of this process, MB; nan where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2 ** 20
    except OSError:
        return math.nan


def roll(model, folder, arm, frames=FRAMES):
    """-> films uint8 (4 n h w 3), memory growth in MB. Films are kept as .mp4 and as frames in runs/samples/."""
    stem = _samples.RUNS / "samples" / _samples.key(folder, rollout=arm, frames=frames, steps=STEPS)
    path, told = stem.with_suffix(".safetensors"), torch.cat([model.labels(**asked) for asked in ASKED])
    if not path.is_file():
        kept, memory = [], []

        def parts():
            done = torch.zeros(0)
            for z in model.rollout(told, frames, seed=SEED, steps=STEPS, **ARMS[arm]):
                x = model.decode(z)
                memory.append((sum(len(part[0]) for part in kept), resident_mb()))
                kept.append((x * 127.5 + 127.5).round().byte().permute(0, 1, 3, 4, 2))
                yield torch.cat(x.unbind(0), dim=-1)
            return done
        show.save_growing(stem.with_suffix(".mp4"), parts(), driving.KEY_FPS, scale=1)
        films = torch.cat(kept, dim=1)
        # what is kept here for the figures is no part of the rollout: one byte a value
        per_frame = films[:, :1].numel() / 2 ** 20
        begin = next(row for row in memory if row[0] >= 30 * driving.KEY_FPS or row is memory[-1])
        growth = memory[-1][1] - begin[1] - per_frame * (memory[-1][0] - begin[0])
        weights.save_tensors(path, {"films": films.contiguous(), "growth": torch.tensor(growth)})
    saved = weights.load_tensors(path)
    return saved["films"], float(saved["growth"])


def measure(films, asked, judge, finder):
    """Of one part of the films, float (n t 3 h w): figures that do not know the truth."""
    said = judge.judge(films)
    cars = torch.tensor([len(boxes) for boxes in finder.find(films.flatten(0, 1))]).float().view(len(films), -1)
    seen = judge.judge(films.flatten(0, 1)[:, None].expand(-1, 2, -1, -1, -1)).night.view(len(films), -1)
    return dict(motion=metrics.motion(films), light=(seen == (asked[:, :1] == 1)).float().mean(1), cars=cars.mean(1),
                brightness=films.mean((1, 2, 3, 4)) + 1, speed=said.speed,
                sharpness=films.diff(dim=-1).square().flatten(1).mean(1) + films.diff(dim=-2).square().flatten(1).mean(1),
                colour=(films - films.mean(2, keepdim=True)).abs().flatten(1).mean(1))


def loops(films, real, size=8, stride=4):
    """How many windows lie nearer to an earlier one (8 frames or more before) than any two of a real drive do."""
    def least(film):
        small = torch.nn.functional.avg_pool2d(film, 8).flatten(1)                                      # t d
        windows = small.unfold(0, size, stride).flatten(1)
        far = torch.cdist(windows, windows)
        far[torch.ones_like(far).triu(1 - size // stride).bool()] = math.inf
        return far.min(1).values[size // stride:]
    floor = min(float(least(film).min()) for film in real)
    return sum(int((least(film) < floor).sum()) for film in films)


@torch.no_grad()
def run(folder=None, arms=tuple(ARMS), frames=FRAMES):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(_drives.WEIGHTS)
    model, (judge, finder) = VideoLDM.from_pretrained(folder), _drives.judges(folder)
    asked = torch.cat([model.labels(**some) for some in ASKED])
    real = [video.to_float(driving.Drive(seed, frames).frames) for seed in driving.seeds("held_out", 8, first=40_000)]
    lit = torch.tensor([driving.Scene(seed).night for seed in driving.seeds("held_out", 8, first=40_000)])
    still = {k: metrics.motion(torch.stack([x for x, night in zip(real, lit) if night == k])).median() for k in (0, 1)}
    table = {}
    for arm in arms:
        films, growth = roll(model, folder, arm, frames)
        x = video.to_float(films)
        first, last = (measure(x[:, part], asked, judge, finder) for part in (slice(0, MINUTE), slice(-MINUTE, None)))
        drift = lambda key: float(((last[key] / first[key]) - 1).abs().max())                           # noqa: E731
        moved = last["motion"] / torch.stack([still[int(k)] for k in asked[:, 0]])
        drop = max(100 * float((first["light"] - last["light"]).mean()),
                   100 * (metrics.spearman(first["cars"], asked[:, 1]) - metrics.spearman(last["cars"], asked[:, 1])))
        table[arm] = dict(memory_growth_mb=round(growth, 1), motion_ratio_last=[round(float(v), 3) for v in moved],
                          label_drop_points=round(drop, 1), cars=[first["cars"].tolist(), last["cars"].tolist()],
                          **{f"{key}_drift": round(drift(key), 3) for key in ("brightness", "sharpness", "colour")},
                          loops=loops(x, real))
    return {**table[arms[0]], "arms": table, "frames": frames}
