"""The figures of `upsampler` on real video: held-out clips of `signs`, 64x64 to 256x256.

As `upsampler`, 20 patches of each clip at its own frame rate, both upsamplers; features are those
of the driving scene classifier, which has never seen a hand: they distinguish textures and edges,
no more. The floor is of other patches of the same clips. Beside them the pixel upsampler of
`driving`, which has never seen real video: on the same patches, and on `road`, 256x512 of two
dash-cam clips, 40 patches of each; nothing was trained on it. Sheets (bicubic, sampled, true):
data/media/signs.webp, runs/samples/road.webp.
"""
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import driving_samples, samples
from vldm_mini.evaluation.flicker import follow_motion
from vldm_mini.teaching import pictures
from vldm_mini.training.sizes import SIZES
from vldm_mini.training.stages.upsampler import large_clips
from vldm_mini.upsampler import KINDS, VideoUpsampler, bicubic, shrunk

from .upsampler import FRAMES, PATCH, SEED, compare, corner, inner, kept

EACH, MEANS = 20, 8


def patches(clips: Sequence[video.VideoClip], each: int = EACH, first: int = 0) -> Tensor:
    """-> (n 8 3 96 160), at times and positions sampled uniformly, `each` of every clip."""
    out = []
    for k, clip in enumerate(clips):
        frames = clip.frames
        for i in range(each):
            generator = torch.Generator().manual_seed(1000 * k + first + i)
            at = int(torch.randint(len(frames) - FRAMES + 1, (1,), generator=generator))
            top, left = corner(generator, frames.shape[1:3], PATCH)
            window = frames[at:at + FRAMES, top:top + PATCH[0], left:left + PATCH[1]]
            out.append(video.to_float(window))
    return torch.stack(out)


def save_sheet(path: Path, x: Tensor, sampled: Tensor) -> None:
    """Bicubic, sampled and true first frames of four patches."""
    every = len(x) // 4 or 1
    columns = [inner(y)[::every, 0] for y in (bicubic(shrunk(x)), sampled, x)]
    image = pictures.strip(torch.stack(columns, 1)).image
    pictures.write_beside(path, pictures.encode_image(image, "webp", quality=85))


def run(folder: Path | None = None, each: int = EACH, means: int = MEANS) -> dict:
    """All figures; arguments are for tests."""
    folder, other = folder or weights.shipped("signs"), weights.shipped(driving_samples.WEIGHTS)
    classifier, _ = driving_samples.classifiers(other)
    sets = {"signs": (large_clips("signs", SIZES["s"].upsampler, "held_out"), each),
            "road": (video.load("road", size=(256, 512)), 2 * each)}
    x = {name: patches(clips, n) for name, (clips, n) in sets.items()}
    others = {name: patches(clips, n, 500) for name, (clips, n) in sets.items()}
    motion = {name: follow_motion(inner(some)) for name, some in x.items()}

    def of(upsampler: VideoUpsampler, name: str, folder: Path, kind: str) -> dict:
        return compare(upsampler, x[name], others[name], motion[name], classifier,
                       kept(folder, kind), means)
    found = {kind: of(VideoUpsampler.from_pretrained(folder, kind), "signs", folder, kind)
             for kind in KINDS}
    of_driving = VideoUpsampler.from_pretrained(other)
    beside = {f"driving's weights on {name}": of(of_driving, name, other, "pixel") for name in sets}
    if each == EACH:
        for name, path, by, upsampler in (
                ("signs", samples.ROOT / "data" / "media" / "signs.webp", folder,
                 VideoUpsampler.from_pretrained(folder)),
                ("road", samples.RUNS / "samples" / "road.webp", other, of_driving)):
            sampled = kept(by, "pixel")(upsampler, shrunk(x[name]), seed=SEED)
            save_sheet(path, x[name], sampled)
    return found["pixel"] | {"latent": found["latent"]} | beside
