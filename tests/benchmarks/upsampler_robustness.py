"""Does noise augmentation help where the small video is generated rather than a reduced true one?

160 generated clips of 64x128, one frame each, a patch of it enlarged by the image upsampler
(alpha = 1). Arms: the shipped network, conditioned on several noise levels tau_gamma of noise
that was added to the frame; a network of the same recipe, seed, steps and batch that was trained
without any. Fréchet distance of the scene classifier's features to those of true large frames, of
other clips. The level is chosen on one half of the frames (best_tau_gamma), all is scored on the
other: distance_augmented: that level, distance_plain: the other network; distance_at_0: the
shipped one at tau_gamma = 0. Beside them bicubic, other true frames (floor), grain added to
distance_at_0's frames (does the measure reward grain?), the same arms on true small frames (where
noise can only hurt), and a sheet of patches, data/media/robustness.webp.
"""
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini import machine, weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import driving_samples, samples
from vldm_mini.evaluation.driving_classifiers import SceneClassifier
from vldm_mini.evaluation.frechet import frechet_distance
from vldm_mini.teaching import pictures
from vldm_mini.temporal import insert
from vldm_mini.training import BatchRandom, Objective, Record, Settings, train
from vldm_mini.training.sizes import DRIVING
from vldm_mini.training.stages import upsampler as stage
from vldm_mini.training.stages.common import STORED_AS
from vldm_mini.upsampler import Upsampler, UpsamplerConfig, VideoUpsampler, bicubic, shrunk

from ._common import shipped_folder
from .upsampler import HEIGHT, MARGIN, WIDTH, held_out_patches, inner, kept

N, LEVELS, SEED, GRAIN = 160, (0, 10, 25, 50, 100), 3, 0.02


def without_augmentation(folder: Path) -> tuple[Path, VideoUpsampler]:
    """The image upsampler trained without noise augmentation, otherwise as the shipped one.

    Kept in runs/samples/. -> its folder, the upsampler.
    """
    stored = Record.load(folder / "upsampler" / "image").settings
    settings = replace(Settings(**stored), precision="")
    name = samples.key(folder, ("upsampler/image",), without=settings.steps)
    out = samples.RUNS / "samples" / f"{name}-plain"
    image = out / "upsampler" / "image"
    if not (image / weights.WEIGHTS).is_file():
        size = DRIVING["s"].upsampler
        store = stage.patch_store(stage.large_clips("driving", size), 1)
        torch.manual_seed(settings.seed)
        theta = Upsampler(UpsamplerConfig(**size.widths)).to(machine.device())

        def draw_clips(draw: BatchRandom) -> Tensor:
            return stage.draw_patches(store, size.patch, draw)
        loss = stage.upsampling_loss(theta, draw_clips, most=0)
        with torch.enable_grad():
            train(image, settings, [Objective("image", theta, loss, muon=True)])
        theta.save_pretrained(image, dtype=STORED_AS)
    theta = Upsampler.from_pretrained(image).to(machine.device())
    return out, VideoUpsampler(theta, insert(theta, attention=None))


def patches(videos: Tensor) -> Tensor:
    """Of the middle frame of each video uint8 (n t h w 3) a patch with margin -> (n 1 3 24 40)."""
    size, out = (HEIGHT // 4 + 2 * MARGIN, WIDTH // 4 + 2 * MARGIN), []
    for i, frames in enumerate(videos):
        generator = torch.Generator().manual_seed(i)
        top, left = (int(torch.randint(whole - side + 1, (1,), generator=generator))
                     for whole, side in zip(frames.shape[1:], size))
        frame = video.to_float(frames[len(frames) // 2][None])
        out.append(frame[..., top:top + size[0], left:left + size[1]])
    return torch.stack(out)


def features(classifier: SceneClassifier, x: Tensor) -> Tensor:
    """Of one frame each, (n 1 3 h w) with margin -> (n c)."""
    twice = inner(x).expand(-1, 2, -1, -1, -1)
    return classifier.classify(twice).frame_features[:, 0]


@torch.no_grad()
def run(folder: Path | None = None, n: int = N, levels: tuple[int, ...] = LEVELS) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    classifier, x = driving_samples.classifiers(folder)[0], held_out_patches(n)[:, :1]
    plain_folder, plain = without_augmentation(folder)
    ours, true = VideoUpsampler.from_pretrained(folder), features(classifier, x)
    choose, score = slice(0, None, 2), slice(1, None, 2)

    def distance(videos: Tensor, half: slice) -> float:
        return round(frechet_distance(features(classifier, videos)[half], true[half]), 6)

    def arms(low: Tensor) -> dict[str, Tensor]:
        make = kept(folder, "pixel")
        out = {f"tau_gamma {level}": make(ours, low, seed=SEED, alpha=1, tau_gamma=level)
               for level in levels}
        out["trained without"] = kept(plain_folder, "pixel")(plain, low, seed=SEED, alpha=1)
        first = out[f"tau_gamma {levels[0]}"]
        grain = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
        out[f"tau_gamma {levels[0]}, and grain"] = (first + GRAIN * grain).clamp(-1, 1)
        return out | {"bicubic": bicubic(low)}
    videos = arms(patches(driving_samples.generated(folder, n=n)[0]))
    best = min(levels, key=lambda level: distance(videos[f"tau_gamma {level}"], choose))
    generated = {name: distance(some, score) for name, some in videos.items()}
    of_true = {name: distance(some, score) for name, some in arms(shrunk(x)).items()}
    if n == N:
        # a patch a row, an arm a column
        sheet = torch.cat([inner(some) for some in videos.values()], dim=1)[:6]
        image = pictures.encode_image(pictures.strip(sheet).image, "webp", quality=85)
        pictures.write_beside(samples.ROOT / "data" / "media" / "robustness.webp", image)
    return {"distance_augmented": generated[f"tau_gamma {best}"],
            "distance_plain": generated["trained without"],
            "distance_at_0": generated[f"tau_gamma {levels[0]}"], "best_tau_gamma": best,
            "floor": distance(held_out_patches(n, 70_000)[:, :1], score), "generated": generated,
            "of_true_small_frames": of_true, "n": n // 2}
