"""Do generated clips of `actions` move as much, and as smoothly, as real ones of the same action?

video_ratio, jerk_ratio: per action, the median frame-to-frame change and jerk (`measures.motion`,
`measures.jerk`: of frames blurred by 6 pixels, so that noise does not count as motion) of
generated clips over those of real windows of the trained combinations at the same stride. 0.7 to
1.3 is good. image_ratio, image_jerk_ratio: the alpha = 1 clips, which must fall outside in one of
the two (image_distinguished). Beside them baselines derived from real windows (shuffled, freeze,
stutter), and real clips held out from the generator.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples, measures
from vldm_mini.evaluation.action_samples import FRAMES, STRIDE, Samples
from vldm_mini.evaluation.baselines import baselines
from vldm_mini.evaluation.frechet import bootstrap
from vldm_mini.pipeline import VideoLDM

GOOD = (0.7, 1.3)


def change(videos: Tensor) -> Tensor:
    """Motion of unblurred frames: flicker counts."""
    return measures.motion(videos, blur=0)


MEASURES = {"motion": measures.motion, "jerk": measures.jerk, "change": change}


def measure(videos: Tensor, batch: int = 16) -> dict[str, Tensor]:
    """Videos (n t 3 h w) -> {name of MEASURES: (n,) float64}."""
    parts = videos.split(batch)
    return {name: torch.cat([of(part) for part in parts]) for name, of in MEASURES.items()}


def real_windows(clips: Sequence[video.VideoClip], count: int = 16) -> tuple[Tensor, Tensor]:
    """-> videos (n t 3 h w), actions (n,): `count` windows of each clip, evenly apart, so that long
    clips count no more than short ones."""
    videos, actions = [], []
    for clip in clips:
        last = len(clip.frames) - video.span(FRAMES, STRIDE)
        for start in torch.linspace(0, last, count).tolist():
            videos.append(video.window(clip.frames, round(start), FRAMES, STRIDE))
        actions += [clip.labels["action"]] * count
    return video.to_float(torch.stack(videos)), torch.tensor(actions)


def ratios(found: dict, actions: Tensor, real: dict, real_actions: Tensor) -> dict:
    """{"motion": {action: median over median of real}, ...}, and for each a 95 % bootstrap
    interval."""
    out, generator = {}, torch.Generator().manual_seed(0)
    for name in MEASURES:
        ratio, intervals = {}, {}
        for k, action in enumerate(video.ACTIONS):
            values, base = found[name][actions == k], real[name][real_actions == k].median()
            ratio[action] = round(float(values.median() / base), 3)
            interval = bootstrap(values, torch.median, generator, samples=300)
            intervals[action] = [round(float(limit / base), 3) for limit in interval]
        out |= {name: ratio, f"{name}_interval": intervals}
    return out


def worst(per_action: dict[str, float]) -> float:
    """The ratio that is farthest from 1, up or down."""
    return max(per_action.values(), key=lambda ratio: abs(math.log(max(ratio, 1e-9))))


def outside(ratio: float) -> bool:
    """Whether a ratio is not GOOD."""
    return not GOOD[0] <= ratio <= GOOD[1]


def run(model: VideoLDM | None = None, generated: dict[str, Samples] | None = None,
        clips: Sequence[video.VideoClip] | None = None) -> dict:
    """All figures; arguments are for tests."""
    if generated is None:
        model, generated = action_samples.all_samples()
    trained, held_out = video.split(clips or video.actions())
    videos, actions = real_windows([clip for clip in trained if not clip.mirror])
    other, other_actions = real_windows([clip for clip in held_out if not clip.mirror])
    real = measure(videos)

    def compare(some: Tensor, which: Tensor) -> dict:
        return ratios(measure(some), which, real, actions)
    found = {name: compare(part.float(), part.actions) for name, part in generated.items()}
    beside = {f"real, {name}": compare(some, actions)
              for name, some in baselines(videos, torch.Generator().manual_seed(0)).items()}
    beside["real, held out from the generator"] = compare(other, other_actions)
    motion, jerk, image = found["video"]["motion"], found["video"]["jerk"], found["image"]
    distinguished = {action: outside(image["motion"][action]) or outside(image["jerk"][action])
                     for action in video.ACTIONS}
    return {"video_ratio": motion, "jerk_ratio": jerk, "image_ratio": image["motion"],
            "image_jerk_ratio": image["jerk"], "video_ratio_worst": worst(motion),
            "jerk_ratio_worst": worst(jerk), "image_distinguished": distinguished,
            "n": {name: len(part.videos) for name, part in generated.items()} | {
                "real": len(videos)},
            "generated": found, "beside": beside, "settings": action_samples.settings(model)}
