"""Do generated clips move as much, and as smoothly, as real ones of the same action at the same stride?

video_ratio, jerk_ratio: per action, the median frame-to-frame change and jerk (`measures.motion`, `measures.jerk`: of
frames blurred by 6 pixels, so that noise is not taken for motion) of generated clips over those of real windows of the
trained combinations. 0.7 to 1.3 is good. image_ratio, image_jerk_ratio: the alpha = 1 clips, which must fall outside in
one of the two. Beside them baselines made of real windows (shuffled, freeze, stutter), and real clips held out from the
generator.
"""
import math

import torch

from vldm_mini.datasets import video
from vldm_mini.evaluation import action_classifiers, action_samples, measures

GOOD = (0.7, 1.3)
MEASURES = {"motion": measures.motion, "jerk": measures.jerk, "change": lambda films: measures.motion(films, blur=0)}


def measure(films, batch=16):
    """Films (n t 3 h w) -> {"motion", "jerk", "change" (unblurred: flicker counts)}: each (n,) float64."""
    parts = films.split(batch)
    return {name: torch.cat([of(part) for part in parts]) for name, of in MEASURES.items()}


def real_windows(clips, count=16):
    """-> films (n t 3 h w), actions (n,): `count` windows of each clip, evenly apart, so that no long clip outvotes."""
    films, actions = [], []
    for clip in clips:
        last = len(clip.frames) - video.span(action_samples.FRAMES, action_samples.STRIDE)
        films += [video.window(clip.frames, round(start), action_samples.FRAMES, action_samples.STRIDE)
                  for start in torch.linspace(0, last, count).tolist()]
        actions += [clip.labels["action"]] * count
    return video.to_float(torch.stack(films)), torch.tensor(actions)


def ratios(found, actions, real, real_actions):
    """{"motion": {action: median over median of real}, ...} and for each a 95 % bootstrap interval over the clips."""
    out, generator = {}, torch.Generator().manual_seed(0)
    for name in MEASURES:
        for k, action in enumerate(video.ACTIONS):
            values, base = found[name][actions == k], real[name][real_actions == k].median()
            low, high = measures.bootstrap(values, torch.median, generator, draws=300)
            out.setdefault(name, {})[action] = round(float(values.median() / base), 3)
            interval = [round(float(low / base), 3), round(float(high / base), 3)]
            out.setdefault(f"{name}_interval", {})[action] = interval
    return out


def worst(per_action):
    """The ratio that is farthest from 1, up or down."""
    return max(per_action.values(), key=lambda r: abs(math.log(max(r, 1e-9))))


def outside(ratio):
    return not GOOD[0] <= ratio <= GOOD[1]


def run(model=None, made=None, clips=None):
    """All figures; arguments are for tests."""
    if made is None:
        model, made = action_samples.all_samples()
    trained, held = video.split(clips or video.actions())
    films, actions = real_windows([clip for clip in trained if not clip.mirror])
    other, other_actions = real_windows([clip for clip in held if not clip.mirror])
    real = measure(films)
    compare = lambda some, which: ratios(measure(some), which, real, actions)                            # noqa: E731
    found = {name: compare(part.float(), part.actions) for name, part in made.items()}
    beside = {f"real, {name}": compare(film, actions)
              for name, film in action_classifiers.baselines(films, torch.Generator().manual_seed(0)).items()}
    beside["real, held out from the generator"] = compare(other, other_actions)
    image = found["image"]
    told = {action: outside(image["motion"][action]) or outside(image["jerk"][action]) for action in video.ACTIONS}
    return {"video_ratio": found["video"]["motion"], "jerk_ratio": found["video"]["jerk"],
            "image_ratio": image["motion"], "image_jerk_ratio": image["jerk"],
            "video_ratio_worst": worst(found["video"]["motion"]), "jerk_ratio_worst": worst(found["video"]["jerk"]),
            "image_told_apart": told,
            "n": {name: len(part.films) for name, part in made.items()} | {"real": len(films)},
            "generated": found, "beside": beside, "settings": action_samples.settings(model)}
