"""Does a drive of 4.5 minutes stay a drive? Four rollouts of 506 key frames: memory, motion, labels, drift, loops.

Eight steps a window; as shipped (labels and context guided alike), guided by the context alone as in eq. (4), without
guidance, and with noise augmentation. Decoded and written to a film part by part. memory_growth_mb: resident memory of
the process at the end minus at 30 s of film; a process's first rollout grows more than its later ones. In the last 60 s:
motion_ratio_last, the change from frame to frame over that of rendered windows of the same light and number of cars, in
the mean; pace_last, a measure that bare scenery does not lower: that change over the change between frames 9, 13 and 17 s
apart, in which all of a scene has gone by (frozen 0, shuffled 1); and
label_drop_points: how many points fewer frames are of the light asked for, or have within one of the number of cars,
than in the first 60 s (the larger). Drifts: mean brightness, gradient energy, mean distance of the colour channels, last
60 s over first 60 s, minus 1 (the largest of the four in size). loops: windows of 8 frames that are nearer to an earlier
window of their film than any two windows of four rendered drives are. Beside it the same of four other rendered drives,
and of frozen films.
"""
import math
import tempfile
from pathlib import Path

import torch

from vldm_mini import weights
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_samples, driving_samples, measures
from vldm_mini.pipeline import VideoLDM
from vldm_mini.teaching import pictures

FRAMES, MINUTE, SEED, STEPS = 506, 112, 21, 8          # 4.5 minutes and 60 s at 1.875 frames a second
ASKED = (dict(light="day", cars=0), dict(light="day", cars=3), dict(light="night", cars=1), dict(light="night", cars=3))
ARMS = {"shipped": {}, "context guided alone": {"label_guidance": 1.0}, "no guidance": {"context_guidance": 1.0},
        "noise augmentation": {"augment": 60}}


def resident_mb():
    """Resident memory of this process, MB; nan where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2 ** 20
    except OSError:
        return math.nan


def roll(model, folder, arm, frames=FRAMES):
    """-> films uint8 (4 n h w 3), memory growth in MB. Films are kept as .mp4 and as frames in runs/samples/."""
    stages = ("autoencoder", "image", "prediction", "decoder")
    stem = action_samples.RUNS / "samples" / action_samples.key(folder, stages, rollout=arm, frames=frames, steps=STEPS, **ARMS[arm])
    path, told = stem.with_suffix(".safetensors"), torch.cat([model.labels(**asked) for asked in ASKED])
    if not path.is_file():
        memory = []

        def parts(raw):
            for z in model.rollout(told, frames, seed=SEED, steps=STEPS, **ARMS[arm]):
                x = model.decode(z)
                # frame by frame to the disk: nothing is kept in memory but what a rollout keeps
                raw.write(pictures.pixels(x).swapaxes(0, 1).tobytes())
                memory.append((raw.tell(), resident_mb()))
                yield torch.cat(x.unbind(0), dim=-1)
        with tempfile.TemporaryFile() as raw:
            pictures.save_growing(stem.with_suffix(".mp4"), parts(raw), driving.KEY_FPS, scale=1)
            begin = next(row for row in memory if row[0] >= memory[-1][0] * 30 * driving.KEY_FPS / frames)
            growth = memory[-1][1] - begin[1]
            raw.seek(0)
            films = torch.frombuffer(bytearray(raw.read()), dtype=torch.uint8)
        films = films.view(frames, len(told), model.config.pixels, -1, 3).transpose(0, 1)
        weights.save_tensors(path, {"films": films.contiguous(), "growth": torch.tensor(growth)})
    saved = weights.load_tensors(path)
    return saved["films"], float(saved["growth"])


def measure(films, asked, classify, finder):
    """Of one part of the films, float (n t 3 h w), asked (n, 2): what the drift of films shows in, (n,) each."""
    cars = torch.tensor([len(boxes) for boxes in finder.find(films.flatten(0, 1))]).float().view(len(films), -1)
    night = classify.classify(films.flatten(0, 1)[:, None].expand(-1, 2, -1, -1, -1)).night.view(len(films), -1)
    edges = [films.diff(dim=axis).square().flatten(1).mean(1) for axis in (-1, -2)]
    return dict(motion=measures.motion(films), light=(night == (asked[:, :1] == 1)).float().mean(1), cars=cars.mean(1),
                crowded=((cars - asked[:, 1:]).abs() <= 1).float().mean(1), brightness=films.mean((1, 2, 3, 4)) + 1,
                sharpness=sum(edges), colour=(films - films.mean(2, keepdim=True)).abs().flatten(1).mean(1))


def pace(films, apart=(16, 24, 32)):
    """How much of all that can change in a film does from one frame to the next. (n t 3 h w) -> (n,), 1 for a shuffle."""
    coarse = measures.low_pass(films, measures.COARSE)
    change = lambda k: (coarse[:, k:] - coarse[:, :-k]).abs().flatten(1).mean(1)                        # noqa: E731
    return change(1) / sum(change(k) for k in apart).clamp(min=1e-6) * len(apart)


def nearest_earlier(film, size=8, stride=4):
    """Of each window of a film (t 3 h w) the distance to the nearest that ended before it began."""
    windows = torch.nn.functional.avg_pool2d(film, 8).flatten(1).unfold(0, size, stride).flatten(1)
    far = torch.cdist(windows, windows)
    far[torch.ones_like(far).triu(1 - size // stride).bool()] = math.inf
    return far.min(1).values[size // stride:]


@torch.no_grad()
def run(folder=None, arms=tuple(ARMS), frames=FRAMES, windows=600):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    model, (classify, finder) = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)
    asked = torch.cat([model.labels(**some) for some in ASKED])
    drives = [driving.DrivingClip(seed, frames) for seed in driving.seeds("held_out", 8, first=40_000)]
    real = torch.stack([video.to_float(drive.frames) for drive in drives])
    true = driving_samples.labels_of(drives)
    some, clips = driving_samples.real(windows, first=50_000)
    moves, told = measures.motion(video.to_float(some)), driving_samples.labels_of(clips)

    def usual(labels):
        return torch.stack([moves[(told == one).all(1)].mean() for one in labels])
    floor = min(float(nearest_earlier(film).min()) for film in real[:4])

    def row(x, asked):
        first, last = (measure(x[:, part], asked, classify, finder) for part in (slice(0, MINUTE), slice(-MINUTE, None)))
        moved = last["motion"] / usual(asked)
        drift = {f"{key}_drift": (last[key] / first[key] - 1) for key in ("brightness", "sharpness", "colour")}
        drop = {key: 100 * float((first[key] - last[key]).mean()) for key in ("light", "crowded")}
        tail = x[:, -MINUTE:]
        return dict(motion_ratio_last=[round(float(v), 3) for v in moved],
                    pace_last=[round(float(v), 3) for v in pace(tail)],
                    pace_last_shuffled=[round(float(v), 3) for v in pace(tail[:, torch.randperm(
                        tail.shape[1], generator=torch.Generator().manual_seed(0))])],
                    label_drop_points=round(max(drop.values()), 1), drop={k: round(v, 1) for k, v in drop.items()},
                    crowded=[round(float(part["crowded"].mean()), 3) for part in (first, last)],
                    cars=[[round(float(v), 2) for v in part["cars"]] for part in (first, last)],
                    **{key: round(float(v.abs().max()), 3) for key, v in drift.items()},
                    each={key: [round(float(one), 3) for one in v] for key, v in drift.items()},
                    loops=sum(int((nearest_earlier(film) < floor).sum()) for film in x))
    table = {}
    for arm in arms:
        films, growth = roll(model, folder, arm, frames)
        table[arm] = {"memory_growth_mb": round(growth, 1), **row(video.to_float(films), asked)}
    shipped = video.to_float(roll(model, folder, arms[0], frames)[0])
    beside = {"rendered": row(real[4:], true[4:]), "frozen": row(shipped[:, :1].expand_as(shipped), asked),
              "asked of other films": row(shipped, asked.flip(0))}
    return {**table[arms[0]], "arms": table, "beside": beside, "frames": frames}
