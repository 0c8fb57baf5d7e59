"""Does a rollout of 4.5 minutes keep its motion, labels and colours? Four of 506 key frames.

Eight steps a window; as shipped (labels and context guided alike), with guidance of the context
alone as in eq. (4), without guidance, and with noise augmentation. Decoded and written to a file
part by part. memory_growth_mb: resident memory of the process at the end minus at 30 s of video;
the first rollout of a process grows more than later ones. In the last 60 s: motion_ratio_last,
the change from frame to frame over the mean of that of rendered windows of the same light and
number of cars; pace_last, a measure that bare scenery does not lower: that change over the change
between frames 9, 13 and 17 s apart, in which all of a scene has gone by (frozen 0, shuffled 1);
and label_drop_points: how many points fewer frames have the requested light, or come within one
of the requested number of cars, than in the first 60 s (the larger of the two). Drifts: mean
brightness, gradient energy, mean distance of the colour channels, last 60 s over first 60 s,
minus 1 (the largest of the four in size). loops: windows of 8 frames that are nearer to an
earlier window of their video than any two windows of four rendered videos are. Beside it the same
of four other rendered videos, and of frozen ones.
"""
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_samples, measures, samples
from vldm_mini.evaluation.driving_classifiers import CarFinder, SceneClassifier
from vldm_mini.evaluation.flicker import gradient_energy
from vldm_mini.pipeline import VideoLDM
from vldm_mini.teaching import pictures

from ._common import shipped_folder

# 4.5 minutes and 60 s at 1.875 frames a second
FRAMES, MINUTE, SEED, STEPS = 506, 112, 21, 8
REQUESTS = (dict(light="day", cars=0), dict(light="day", cars=3), dict(light="night", cars=1),
            dict(light="night", cars=3))
ARMS = {"shipped": {}, "context guided alone": {"label_guidance": 1.0},
        "no guidance": {"context_guidance": 1.0}, "noise augmentation": {"augment": 60}}
APART = (16, 24, 32)                # frames in which all of a scene has gone by
STAGES = ("autoencoder", "image", "prediction", "decoder")


# --------------------------------------------------------------------------------------------------
# Rolling out.

def resident_mb() -> float:
    """Resident memory of this process, MB; nan where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2 ** 20
    except OSError:
        return math.nan


def roll_out(model: VideoLDM, arm: str, frames: int, movie: Path) -> tuple[Tensor, float]:
    """-> videos uint8 (4 frames h w 3), memory growth in MB; also written to `movie`."""
    labels = torch.cat([model.labels(**request) for request in REQUESTS])
    memory = []

    def parts(raw) -> Iterator[Tensor]:
        for z in model.rollout(labels, frames, seed=SEED, steps=STEPS, **ARMS[arm]):
            x = model.decode(z)
            # frame by frame to the disk: memory holds only what a rollout holds
            raw.write(pictures.pixels(x).swapaxes(0, 1).tobytes())
            memory.append((raw.tell(), resident_mb()))
            yield torch.cat(x.unbind(0), dim=-1)
    with tempfile.TemporaryFile() as raw:
        pictures.save_growing(movie, parts(raw), driving.KEY_FPS, scale=1)
        after_30_s = memory[-1][0] * 30 * driving.KEY_FPS / frames
        begin = next(held for written, held in memory if written >= after_30_s)
        raw.seek(0)
        flat = torch.frombuffer(bytearray(raw.read()), dtype=torch.uint8)
    videos = flat.view(frames, len(labels), model.config.pixels, -1, 3).transpose(0, 1)
    return videos, memory[-1][1] - begin


def kept_rollout(model: VideoLDM, folder: Path, arm: str,
                 frames: int = FRAMES) -> tuple[Tensor, float]:
    """As `roll_out`, or from runs/samples/ if the same weights gave it before."""
    name = samples.key(folder, STAGES, rollout=arm, frames=frames, steps=STEPS, **ARMS[arm])
    movie = samples.path_of(name).with_suffix(".mp4")

    def make() -> dict[str, Tensor]:
        videos, growth = roll_out(model, arm, frames, movie)
        return {"videos": videos, "growth": torch.tensor(growth)}
    kept = samples.kept(name, make)
    return kept["videos"], float(kept["growth"])


# --------------------------------------------------------------------------------------------------
# Measures of a long video.

def measure(videos: Tensor, requested: Tensor, classifier: SceneClassifier,
            finder: CarFinder) -> dict[str, Tensor]:
    """Figures of a part of the videos, float (n t 3 h w), requested labels (n, 2): (n,) each."""
    n, frames = len(videos), videos.flatten(0, 1)
    cars = torch.tensor([len(boxes) for boxes in finder.find(frames)]).float().view(n, -1)
    night = classifier.classify(frames[:, None].expand(-1, 2, -1, -1, -1)).night.view(n, -1)
    grey = videos.mean(2, keepdim=True)
    return dict(motion=measures.motion(videos), cars=cars.mean(1),
                light=(night == (requested[:, :1] == 1)).float().mean(1),
                crowded=((cars - requested[:, 1:]).abs() <= 1).float().mean(1),
                brightness=videos.mean((1, 2, 3, 4)) + 1, sharpness=gradient_energy(videos),
                colour=(videos - grey).abs().flatten(1).mean(1))


def pace(videos: Tensor) -> Tensor:
    """The share of all that changes in a video which changes from one frame to the next.

    (n t 3 h w) -> (n,), 1 for shuffled frames.
    """
    coarse = measures.low_pass(videos, measures.COARSE)

    def change(apart: int) -> Tensor:
        return (coarse[:, apart:] - coarse[:, :-apart]).abs().flatten(1).mean(1)
    all_of_it = sum(change(apart) for apart in APART) / len(APART)
    return change(1) / all_of_it.clamp(min=1e-6)


def nearest_earlier(frames: Tensor, size: int = 8, stride: int = 4) -> Tensor:
    """Of each window of a video (t 3 h w) the distance to the nearest one that ended before it."""
    small = torch.nn.functional.avg_pool2d(frames, 8).flatten(1)
    windows = small.unfold(0, size, stride).flatten(1)
    distance = torch.cdist(windows, windows)
    not_earlier = torch.ones_like(distance).triu(1 - size // stride).bool()
    distance[not_earlier] = math.inf
    return distance.min(1).values[size // stride:]


def rounded(values: Tensor, digits: int = 3) -> list[float]:
    """A list for the file of results."""
    return [round(float(value), digits) for value in values]


def row(videos: Tensor, requested: Tensor, usual_motion: Tensor, smallest: float,
        classifier: SceneClassifier, finder: CarFinder) -> dict:
    """All figures of one arm but memory. usual_motion (n,): of rendered windows with the requested
    labels; smallest: distance below which windows are a loop."""
    first = measure(videos[:, :MINUTE], requested, classifier, finder)
    last = measure(videos[:, -MINUTE:], requested, classifier, finder)
    drift = {f"{key}_drift": last[key] / first[key] - 1
             for key in ("brightness", "sharpness", "colour")}
    drop = {key: 100 * float((first[key] - last[key]).mean()) for key in ("light", "crowded")}
    tail = videos[:, -MINUTE:]
    order = torch.randperm(tail.shape[1], generator=torch.Generator().manual_seed(0))
    loops = sum(int((nearest_earlier(frames) < smallest).sum()) for frames in videos)
    return dict(motion_ratio_last=rounded(last["motion"] / usual_motion),
                pace_last=rounded(pace(tail)), pace_last_shuffled=rounded(pace(tail[:, order])),
                label_drop_points=round(max(drop.values()), 1),
                drop={key: round(value, 1) for key, value in drop.items()},
                crowded=[round(float(part["crowded"].mean()), 3) for part in (first, last)],
                cars=[rounded(part["cars"], 2) for part in (first, last)],
                **{key: round(float(values.abs().max()), 3) for key, values in drift.items()},
                each={key: rounded(values) for key, values in drift.items()}, loops=loops)


@torch.no_grad()
def run(folder: Path | None = None, arms: tuple[str, ...] = tuple(ARMS), frames: int = FRAMES,
        windows: int = 600) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    model = VideoLDM.from_pretrained(folder)
    classifier, finder = driving_samples.classifiers(folder)
    requested = torch.cat([model.labels(**request) for request in REQUESTS])
    clips = [driving.DrivingClip(seed, frames)
             for seed in driving.seeds("held_out", 8, first=40_000)]
    real = torch.stack([video.to_float(clip.frames) for clip in clips])
    real_labels = driving_samples.labels_of(clips)
    some, some_clips = driving_samples.real(windows, first=50_000)
    motion, labels = measures.motion(video.to_float(some)), driving_samples.labels_of(some_clips)
    smallest = min(float(nearest_earlier(one).min()) for one in real[:4])

    def figures(videos: Tensor, requested: Tensor) -> dict:
        usual = torch.stack([motion[(labels == one).all(1)].mean() for one in requested])
        return row(videos, requested, usual, smallest, classifier, finder)
    table = {}
    for arm in arms:
        videos, growth = kept_rollout(model, folder, arm, frames)
        table[arm] = {"memory_growth_mb": round(growth, 1),
                      **figures(video.to_float(videos), requested)}
    shipped = video.to_float(kept_rollout(model, folder, arms[0], frames)[0])
    beside = {"rendered": figures(real[4:], real_labels[4:]),
              "frozen": figures(shipped[:, :1].expand_as(shipped), requested),
              "labels of other videos": figures(shipped, requested.flip(0))}
    return {**table[arms[0]], "arms": table, "beside": beside, "frames": frames}
