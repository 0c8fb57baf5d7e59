"""Does the video upsampler flicker less than the same network frame by frame, and beat bicubic?

Held-out clips of 256x512, 8 frames at 30 a second; given are the means of 4x4 pixels. To see
details as large as they are, all is scored on patches of 64x128 (the upsampler sees four small
pixels more on each side), one a clip. Arms: the temporal layers as learned; alpha = 1, the image
upsampler frame by frame from the same noise; bicubic. flicker_ratio (`measures.flicker`),
video_distance_gain and frame_distance_ratio (Fréchet distances of the scene classifier's
features): video against frame by frame. mean_gain_db: PSNR of the mean of 8 samples minus
bicubic's; single_gain_db: of one sample. sharpness_error_ratio: relative error of the gradient
energy, ours over bicubic's; feature_ratio: Fréchet distance of frames, ours over bicubic's.
Beside them: the video blurred in time, and, as the floor, as many other true videos.

Where much moves, a video whose detail moves with the scene still flickers by this measure, since
it is other detail than the true video's: a perfect sample errs twice as much as the mean of all
samples. perfect_flicker_ratio is that bound, from the mean of 8, over frame by frame. And a
baseline passes it: the image upsampler with the same noise in every frame ("stuck"), whose detail
sticks to the screen while the scene moves on. So beside it: along_motion_ratio, video against
frame by frame, the change along the motion of the true video where that moves (`along_motion`; a
perfect sample has the true video's own), and still_flicker_ratio, where it stands still (no pixel
of 9x9 changes by more than 0.01 of 2; a perfect sample has none). Fréchet distances of both arms
lie far under the floor (other true videos, at the same n), so beside video_distance_gain there is
video_error_gain, frame by frame over video: how far the features of each video are from those of
the same true video (`video_error`).
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import driving_samples, measures, samples
from vldm_mini.evaluation.baselines import blurred_in_time
from vldm_mini.evaluation.driving_classifiers import SceneClassifier, ScenePrediction
from vldm_mini.evaluation.flicker import (
    along_motion,
    follow_motion,
    gradient_energy,
    still_flicker,
)
from vldm_mini.upsampler import KINDS, VideoUpsampler, bicubic, shrunk

from ._common import feature_distance, shipped_folder

N, MEANS, SAMPLES, FRAMES, FPS, MARGIN, SEED = 128, 24, 8, 8, 30, 4, 3
HEIGHT, WIDTH = 64, 128             # what the scene classifier sees
PATCH = (HEIGHT + 8 * MARGIN, WIDTH + 8 * MARGIN)
Motion = tuple[Tensor, Tensor]
Make = Callable[..., Tensor]        # make(upsampler, low, **how) -> videos


def corner(generator: torch.Generator, size: Sequence[int], patch: Sequence[int]) -> list[int]:
    """Top and left of a random patch in a picture, on multiples of 4 pixels."""
    return [4 * int(torch.randint((whole - side) // 4 + 1, (1,), generator=generator))
            for whole, side in zip(size, patch)]


def held_out_patches(n: int = N, first: int = 50_000) -> Tensor:
    """Patches (n 8 3 96 160): what is scored, and 16 large pixels around it."""
    times, found = 2.0 + torch.arange(FRAMES).numpy() / FPS, []
    for i, seed in enumerate(driving.seeds("held_out", n, first)):
        top, left = corner(torch.Generator().manual_seed(i), (256, 512), PATCH)
        frames = driving.Scene(seed).render(times, 256, crop=(top, left, *PATCH))
        found.append(video.to_float(torch.from_numpy(frames)))
    return torch.stack(found)


def inner(x: Tensor) -> Tensor:
    """Without the margin."""
    return x[..., 4 * MARGIN:-4 * MARGIN, 4 * MARGIN:-4 * MARGIN]


def video_error(found: ScenePrediction, true: ScenePrediction) -> float:
    """Mean square distance of the features of videos from those of the same true videos, in units
    of their spread."""
    off = (found.video_features - true.video_features) / true.video_features.std(0)
    return float(off.square().mean())


def row(videos: Tensor, true: Tensor, motion: Motion, found: ScenePrediction,
        of_true: ScenePrediction) -> dict[str, float]:
    """Figures of the videos (n t 3 h w) of one arm."""
    sharpness = gradient_energy(videos) / gradient_energy(true)
    return dict(psnr_db=float(measures.psnr(videos, true).mean()),
                flicker=float(measures.flicker(videos, true).mean()),
                still_flicker=still_flicker(videos, true),
                along_motion=along_motion(videos, *motion), sharpness=float(sharpness.median()),
                sharpness_error=float((sharpness - 1).abs().median()),
                video_distance=feature_distance(found, of_true, "video"),
                frame_distance=feature_distance(found, of_true, "frame"),
                video_error=video_error(found, of_true))


def headline(ours: dict, plain: dict, bicubic: dict) -> dict:
    """The ratios between arms: video, frame by frame, bicubic."""
    return {"flicker_ratio": round(ours["flicker"] / plain["flicker"], 4),
            "along_motion_ratio": round(ours["along_motion"] / plain["along_motion"], 4),
            "still_flicker_ratio": round(ours["still_flicker"] / plain["still_flicker"], 4),
            "video_distance_gain": round(plain["video_distance"] / ours["video_distance"], 3),
            "video_error_gain": round(plain["video_error"] / ours["video_error"], 3),
            "frame_distance_ratio": round(ours["frame_distance"] / plain["frame_distance"], 3),
            "single_gain_db": round(ours["psnr_db"] - bicubic["psnr_db"], 3),
            "sharpness_error_ratio": round(ours["sharpness_error"] / bicubic["sharpness_error"], 4),
            "feature_ratio": round(ours["frame_distance"] / bicubic["frame_distance"], 4)}


@torch.no_grad()
def compare(upsampler: VideoUpsampler, x: Tensor, others: Tensor, motion: Motion,
            classifier: SceneClassifier, make: Make, means: int = MEANS) -> dict:
    """All figures of one upsampler. x, others (n t 3 h w) large, with margin; motion: of x
    without it; make(upsampler, low, **how) -> videos like x."""
    low, true = shrunk(x), inner(x)
    arms = {"video": inner(make(upsampler, low, seed=SEED)),
            "frame by frame": inner(make(upsampler, low, seed=SEED, alpha=1)),
            "bicubic": inner(bicubic(low))}
    arms["video, blurred in time"] = blurred_in_time(arms["video"])
    arms["stuck"] = inner(make(upsampler, low, seed=SEED, alpha=1, stuck=True))
    of_true, floor = classifier.classify(true), classifier.classify(inner(others))
    table = {name: row(videos, true, motion, classifier.classify(videos), of_true)
             for name, videos in arms.items()}
    sampled = [inner(make(upsampler, low[:means], seed=SEED + k)) for k in range(1, SAMPLES)]
    mean = torch.stack([arms["video"][:means], *sampled]).mean(0)
    some = true[:means]
    mean_gain = (measures.psnr(mean, some).mean()
                 - measures.psnr(arms["bicubic"][:means], some).mean())
    flicker_of_mean = measures.flicker(mean, some).mean()
    flicker_of_frames = measures.flicker(arms["frame by frame"][:means], some).mean()
    # a mean of k samples errs by (1 + 1/k) times the least possible, a perfect sample by twice that
    bound = 2 / (1 + 1 / SAMPLES) * flicker_of_mean / flicker_of_frames
    return {**headline(table["video"], table["frame by frame"], table["bicubic"]),
            "perfect_flicker_ratio": round(float(bound), 4),
            "mean_gain_db": round(float(mean_gain), 3),
            "table": {name: {key: round(value, 7) for key, value in one.items()}
                      for name, one in table.items()},
            "true_along_motion": round(along_motion(true, *motion), 6),
            "followed_share": round(float(motion[1].float().mean()), 3),
            "floor": {f"{kind}s": round(feature_distance(floor, of_true, kind), 6)
                      for kind in ("video", "frame")},
            "n": len(x), "precision": upsampler.precision}


class Stuck(VideoUpsampler):
    """The same noise in every frame: detail that sticks to the screen."""

    def noise(self, shape: tuple, seed: int, first: int, kind: int) -> Tensor:
        """The noise of frame 0 for all frames; see VideoUpsampler.noise."""
        return super().noise((shape[0], 1, *shape[2:]), seed, 0, kind).expand(shape)


def kept(folder: Path, kind: str) -> Make:
    """make(upsampler, low, stuck=, **how) whose videos are kept in runs/samples/, by weights and
    settings."""
    stages = [f"{KINDS[kind]}/{part}" for part in ("autoencoder", "image", "temporal")]

    def make(upsampler: VideoUpsampler, low: Tensor, stuck: bool = False, **how: float) -> Tensor:
        content = f"{tuple(low.shape)} {float(low.double().sum()):.6f}"
        name = samples.key(folder, stages, stuck=stuck, precision=upsampler.precision, low=content,
                           **how)

        def sample() -> dict[str, Tensor]:
            network = upsampler
            if stuck:
                network = Stuck(upsampler.theta, upsampler.layers, upsampler.autoencoder,
                                upsampler.precision)
            return {"videos": torch.cat([network(part, **how) for part in low.split(4)]).half()}
        return samples.kept(name, sample)["videos"].float()
    return make


def run(folder: Path | None = None, n: int = N, means: int = MEANS) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    classifier, _ = driving_samples.classifiers(folder)
    x, others = held_out_patches(n), held_out_patches(n, 70_000)
    motion = follow_motion(inner(x))
    found = {kind: compare(VideoUpsampler.from_pretrained(folder, kind), x, others, motion,
                           classifier, kept(folder, kind), means) for kind in KINDS}
    return found["pixel"] | {"latent": found["latent"]}
