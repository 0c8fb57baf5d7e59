"""The films that control- and motion-driving share: generated once and kept in runs/samples/.

200 films over day and night and every number of cars, and the same 200 at alpha = 1; 200 frames with boxes of held-out
scenes. Three generation seeds, pooled. Nothing is picked.
"""
import resource
import sys
import time

import torch

from vldm_mini import weights
from vldm_mini.boxes import BoxImageLDM
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_samples, measures
from vldm_mini.evaluation.driving_classifiers import CarFinder, SceneClassifier
from vldm_mini.pipeline import VideoLDM

WEIGHTS, N, SEEDS, BATCH = "driving", 200, (0, 1, 2), 10


def asked(n=N):
    """What films are asked for: (n, 2) light and cars, every pair equally often."""
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(driving.MOST_CARS + 1))
    return pairs[torch.arange(n) % len(pairs)]


def classifiers(folder):
    return (SceneClassifier.from_pretrained(folder / "classifiers" / "scene"),
            CarFinder.from_pretrained(folder / "classifiers" / "finder"))


def kept(folder, make, **settings):
    """Films uint8 (n t h w 3) as `make` gives them, from runs/samples/ if these weights made them before."""
    path = action_samples.RUNS / "samples" / f"{action_samples.key(folder, **settings)}.safetensors"
    if not path.is_file():
        weights.save_tensors(path, {"films": make().contiguous()})
    return weights.load_tensors(path)["films"]


def in_parts(n, make):
    """make(indices, seed) -> films (b t 3 h w), for n films dealt to the seeds. -> uint8 (n t h w 3)."""
    out = [None] * n
    for seed in SEEDS:
        mine = torch.arange(n)[seed::len(SEEDS)]
        for k, some in enumerate(mine.split(BATCH)):
            films = make(some, 100 * seed + k)
            for i, film in zip(some.tolist(), (films * 127.5 + 127.5).round().clamp(0, 255).byte().movedim(-3, -1)):
                out[i] = film.cpu()
            print(f"seed {seed}: {k * BATCH + len(some)} of {len(mine)}", flush=True)
    return torch.stack(out)


def films(folder, alpha=None, n=N):
    """-> uint8 (n t h w 3), asked-for labels (n, 2)."""
    model, labels = VideoLDM.from_pretrained(folder), asked(n)
    make = lambda some, seed: model.generate(labels[some], alpha=alpha, seed=seed)                      # noqa: E731
    return kept(folder, lambda: in_parts(n, make), driving="films", alpha=alpha, n=n), labels


def scenes(n=N):
    """Boxes and light of n held-out scenes, each with a car in sight: [(n, 4)], (n,). One moment a scene."""
    boxes, night = [], []
    for clip in driving.clips("held_out", 4 * n, 1, first=1000):
        if len(boxes) < n and len(found := clip.boxes[0]):
            boxes.append(torch.from_numpy(found).float())
            night.append(int(clip.scene.night))
    return boxes, torch.tensor(night)


def boxed(folder, told=True, n=N):
    """Frames of the box model -> uint8 (n 1 h w 3), the boxes asked for. told=False: the same noise, no boxes."""
    model, (boxes, night) = BoxImageLDM.from_pretrained(folder), scenes(n)
    labels = torch.stack([night, torch.full_like(night, driving.MOST_CARS + 1)], 1)                   # cars: not told

    def make(some, seed):
        return model.generate(labels[some], boxes=[boxes[i] for i in some] if told else None, seed=seed)
    return kept(folder, lambda: in_parts(n, make), driving="boxes", told=told, n=n), boxes


def real(n=N, first=3000):
    """Held-out films -> uint8 (n 8 h w 3) and what is true of them."""
    clips = driving.clips("held_out", n, 8, first=first)
    return torch.stack([clip.frames for clip in clips]), clips


def floats(x):
    return video.to_float(x)


def labels_of(drives):
    """What is to be told of drives or clips -> long (n, 2): the labels of most of their frames."""
    return torch.stack([drive.labels().float().mean(0).round().long() for drive in drives])


def frechet_report(found, real, generator, draws=100):
    """Distance of found (n, d) from real (m, d) -> {"distance", "interval" (95 %), "floor", "n", "m"}.

    floor: between two halves of the real ones, which is what a perfect generator would get at half the m. The interval
    comes from drawing `found` anew with repetition; a Fréchet distance has a bias that falls with n, so that only
    distances with the same n and m may be compared.
    """
    order = torch.randperm(len(real), generator=generator)
    half = len(real) // 2
    interval = measures.bootstrap(found, lambda some: measures.frechet(some, real), generator, draws)
    return {"distance": measures.frechet(found, real), "interval": list(interval),
            "floor": measures.frechet(real[order[:half]], real[order[half:]]), "n": len(found), "m": len(real)}


class Stages(dict):
    """Seconds and peak memory (of the process, weights included) of one stage after another, by name."""

    def __call__(self, name, make):
        start = time.perf_counter()
        with torch.no_grad():
            out = make()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2 ** 20)
        self[name] = dict(seconds=round(time.perf_counter() - start, 2), peak_memory_mb=round(peak))
        return out


def smooth(model, labels, seed, stage):
    """From noise to 113 frames (b t 3 h w), each step through a Stages."""
    z = stage("key frames", lambda: model.latents(labels, seed=seed))
    z = stage("to 29", lambda: model.interpolate(z, labels, 0, seed))
    z = stage("to 113", lambda: model.interpolate(z, labels, 1, seed))
    return stage("decoding", lambda: model.decode(z))
