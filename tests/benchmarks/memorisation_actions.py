"""Are generated clips copies? Latent distance to the nearest training clip, over that of real
clips.

nn_ratio: median distance of the 200 generated clips to their nearest training window (all shifts,
mirrors included), over that of real held-out clips. That alone says little: held-out clips show
other people and combinations, so that a ratio well under 1 is expected of any good generator. So
beside it: generated held-out combinations over the real ones (the same people and actions); the
distance from a real training window to the nearest *other* moment of training clips (another
cycle of the same motion), which is how near a new video can be; and a true copy, a training
window after the autoencoder. The nearest pairs go as a picture into runs/ (they show real frames
of `actions`: never commit them).
"""
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples, samples
from vldm_mini.evaluation.action_classifiers import windows
from vldm_mini.evaluation.action_samples import FRAMES, STRIDE, Samples
from vldm_mini.evaluation.frechet import Nearest, nearest
from vldm_mini.pipeline import VideoLDM


@torch.no_grad()
def encode(model: VideoLDM, frames: Tensor, batch: int = 64) -> Tensor:
    """uint8 (n h w 3) -> latents (n c h w), scaled, float32 on the CPU."""
    device = next(model.autoencoder.parameters()).device
    return torch.cat([model.autoencoder.encode(video.to_float(part).to(device)).cpu()
                      for part in frames.split(batch)])


def other_moments(clips: Sequence[Tensor], groups: Sequence[str]) -> Tensor:
    """Distance of training windows to the nearest that shares no frame with them, mirrored or
    not: (n,).

    clips: latents (t c h w). For window s of a clip the bank is every clip; of its own group (it
    and its mirror) only what lies a span away.
    """
    span, found = video.span(FRAMES, STRIDE), []
    for i, clip in enumerate(clips):
        for start in range(0, len(clip) - span + 1, 12):
            bank = []
            for other, group in zip(clips, groups):
                same = group == groups[i]
                bank += [other[:start], other[start + span:]] if same else [other]
            bank = [part for part in bank if len(part) >= span]
            window = clip[start:start + span:STRIDE][None]
            found.append(nearest(window, bank, STRIDE).distance)
    return torch.cat(found)


@torch.no_grad()
def copies(model: VideoLDM, clip: video.VideoClip) -> Tensor:
    """Windows of a training clip, encoded, decoded to pixels and encoded again. (n 8 c h w)."""
    originals = windows(clip.frames, FRAMES, STRIDE, step=30)
    latents = torch.stack([encode(model, frames) for frames in originals])
    pixels = samples.to_uint8(model.decode(latents))
    return torch.stack([encode(model, frames) for frames in pixels])


def save_picture(path: Path, generated: Samples, near: Nearest,
                 trained: Sequence[video.VideoClip], count: int = 6) -> None:
    """A PNG of the `count` generated clips that are nearest to a training clip, each above it."""
    from PIL import Image
    rows = []
    for i in near.distance.argsort()[:count].tolist():
        clip = trained[int(near.clip[i])]
        window = video.window(clip.frames, int(near.start[i]), FRAMES, STRIDE)
        for frames in (generated.videos[i], window):
            rows.append(torch.cat(list(frames), dim=1))                         # h (t w) 3
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows).numpy()).save(path)


def run(model: VideoLDM | None = None, generated: dict[str, Samples] | None = None,
        clips: Sequence[video.VideoClip] | None = None) -> dict:
    """All figures; arguments are for tests."""
    if generated is None:
        model, generated = action_samples.all_samples()
    trained, held_out = video.split(clips or video.actions())
    bank = [encode(model, clip.frames) for clip in trained]

    def near(latents: Tensor) -> Nearest:
        return nearest(latents, bank, STRIDE)

    def real(clips: Sequence[video.VideoClip]) -> Tensor:
        return torch.cat([near(windows(encode(model, clip.frames), FRAMES, STRIDE, step=6)).distance
                          for clip in clips])
    person_8 = [clip for clip in held_out if clip.labels["person"] == video.HELD_OUT_PERSON]
    pairs = [clip for clip in held_out if clip.labels["person"] != video.HELD_OUT_PERSON]
    found = {name: near(part.latents.float()) for name, part in generated.items()}
    others = other_moments(bank, [clip.group for clip in trained])
    distance = {"generated": found["video"].distance,
                "generated_held_out": found["held_out"].distance,
                "generated_image": found["image"].distance,
                "real_held_out_pairs": real(pairs), "real_person_8": real(person_8),
                "real_other_moment": others,
                "copy": near(torch.cat([copies(model, clip) for clip in trained[::5]])).distance}
    distance["real_held_out"] = torch.cat([distance["real_held_out_pairs"],
                                           distance["real_person_8"]])
    median = {name: float(values.median()) for name, values in distance.items()}
    picture = samples.RUNS / "memorisation-actions.png"
    save_picture(picture, generated["video"], found["video"], trained)

    def ratio(a: str, b: str) -> float:
        return round(median[a] / median[b], 3)
    nearer = (found["video"].distance < others.min()).double().mean()
    return {"nn_ratio": ratio("generated", "real_held_out"),
            "nn_ratio_held_out": ratio("generated_held_out", "real_held_out_pairs"),
            "nn_ratio_other_moment": ratio("generated", "real_other_moment"),
            "copy_ratio": ratio("copy", "real_held_out"),
            "nearer_than_any_other_moment": round(float(nearer), 3),
            "median_distance": {name: round(value, 4) for name, value in median.items()},
            "n": {name: len(values) for name, values in distance.items()},
            "picture": f"runs/{picture.name}", "settings": action_samples.settings(model)}
