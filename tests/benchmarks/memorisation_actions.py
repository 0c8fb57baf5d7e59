"""Are generated clips copies? Latent distance to the nearest training clip over the same for real held-out clips.

nn_ratio: median distance of the 200 generated clips to their nearest training window (all shifts, mirrors included),
over that of real held-out clips. That alone says little: held-out clips show other people and combinations, so that a
ratio well under 1 is expected of any good generator. So beside it: generated held-out combinations over the real ones
(the same people and actions); the distance from a real training window to the nearest *other* moment of training clips
(another cycle of the same motion), which is how near an honest film comes; and a true copy, a training window after the
autoencoder. The nearest pairs are drawn into runs/ (they show real frames of `actions`: never commit them).
"""
import torch

from vldm_mini.datasets import video
from vldm_mini.evaluation import action_classifiers, action_samples, measures


@torch.no_grad()
def encode(model, frames, batch=64):
    """uint8 (n h w 3) -> latents (n c h w), scaled, float32 on the CPU."""
    device = next(model.autoencoder.parameters()).device
    return torch.cat([model.autoencoder.encode(video.to_float(part).to(device)).cpu() for part in frames.split(batch)])


def latent_windows(film, step=6):
    """Latents of a clip (t c h w) -> windows (n 8 c h w), every `step`-th start."""
    return action_classifiers.windows(film, action_samples.FRAMES, action_samples.STRIDE, step=step)


def other_moments(films, groups):
    """Distance of training windows to the nearest that shares no frame with them, mirrored or not: (n,).

    For window s of a clip the bank is every clip; of its own group (it and its mirror) only what lies a span away.
    """
    span, found = video.span(action_samples.FRAMES, action_samples.STRIDE), []
    for i, film in enumerate(films):
        for start in range(0, len(film) - span + 1, 12):
            bank = [part for j, other in enumerate(films) for part in
                    ([other[:start], other[start + span:]] if groups[j] == groups[i] else [other])]
            bank = [part for part in bank if len(part) >= span]
            window = film[start:start + span:action_samples.STRIDE][None]
            found.append(measures.nearest(window, bank, action_samples.STRIDE).distance)
    return torch.cat(found)


@torch.no_grad()
def copies(model, clip):
    """Windows of a training clip, encoded, decoded to pixels and encoded again: what a copy looks like. (n 8 c h w)."""
    films = action_classifiers.windows(clip.frames, action_samples.FRAMES, action_samples.STRIDE, step=30)
    pixels = model.decode(torch.stack([encode(model, film) for film in films]))                          # n t 3 h w
    pixels = (pixels * 127.5 + 127.5).round().byte().movedim(2, -1)
    return torch.stack([encode(model, film) for film in pixels])


def draw(path, made, near, trained, count=6):
    """A PNG of the `count` generated clips that are nearest to a training clip, each above its neighbour."""
    from PIL import Image
    rows = []
    for i in near.distance.argsort()[:count].tolist():
        start, clip = int(near.start[i]), trained[int(near.clip[i])]
        pair = made.films[i], video.window(clip.frames, start, action_samples.FRAMES, action_samples.STRIDE)
        rows += [torch.cat(list(film), dim=1) for film in pair]                                          # h (t w) 3
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows).numpy()).save(path)


def run(model=None, made=None, clips=None):
    """All figures; arguments are for tests."""
    if made is None:
        model, made = action_samples.all_samples()
    trained, held = video.split(clips or video.actions())
    bank = [encode(model, clip.frames) for clip in trained]
    near = lambda films: measures.nearest(films, bank, action_samples.STRIDE)                                   # noqa: E731
    real = {clip.name: near(latent_windows(encode(model, clip.frames))).distance for clip in held}
    pairs = torch.cat([real[clip.name] for clip in held if clip.labels["person"] != video.HELD_OUT_PERSON])
    strangers = torch.cat([real[clip.name] for clip in held if clip.labels["person"] == video.HELD_OUT_PERSON])
    found = {name: near(part.latents.float()) for name, part in made.items()}
    again = torch.cat([copies(model, clip) for clip in trained[::5]])
    others = other_moments(bank, [clip.group for clip in trained])
    distance = {"generated": found["video"].distance, "generated_held_out": found["held_out"].distance,
                "generated_image": found["image"].distance, "real_held_out": torch.cat(list(real.values())),
                "real_held_out_pairs": pairs, "real_person_8": strangers, "real_other_moment": others,
                "copy": near(again).distance}
    middle = {name: float(values.median()) for name, values in distance.items()}
    ratio = lambda a, b: round(middle[a] / middle[b], 3)                                                 # noqa: E731
    picture = action_samples.RUNS / "memorisation-actions.png"
    draw(picture, made["video"], found["video"], trained)
    return {"nn_ratio": ratio("generated", "real_held_out"),
            "nn_ratio_held_out": ratio("generated_held_out", "real_held_out_pairs"),
            "nn_ratio_other_moment": ratio("generated", "real_other_moment"),
            "copy_ratio": ratio("copy", "real_held_out"),
            "nearer_than_any_other_moment": round(float((found["video"].distance < others.min()).double().mean()), 3),
            "median_distance": {name: round(value, 4) for name, value in middle.items()},
            "n": {name: len(values) for name, values in distance.items()}, "picture": f"runs/{picture.name}",
            "settings": action_samples.settings(model)}
