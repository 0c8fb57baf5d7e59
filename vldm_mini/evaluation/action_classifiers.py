"""Classifiers of `actions`: small networks for who is seen, doing what, and are the frames in
order.

Paper: section 4 measures with FVD and human raters. MINI: 36 clips of nine people are too few for
either, so that we count what can be checked. `action_classifier_training` trains the networks, on
real clips only. Videos are `b t c h w` in [-1, 1]. Chapters 04 and 12 use them.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vldm_mini.datasets.video import VideoClip
from vldm_mini.evaluation.baselines import baselines
from vldm_mini.weights import Pretrained


@dataclass(frozen=True)
class ActionClassifiersConfig:
    """Videos are classified at size x size. `window` frames, `stride` apart in the source, is what
    the networks were trained on."""
    size: int = 32
    window: int = 8
    stride: int = 3
    # MINI: sampled from in training, so that a slightly slow video is still in order
    strides: tuple[int, ...] = (2, 3, 3)
    channels: tuple[int, ...] = (16, 32, 64)
    actions: int = 4
    persons: int = 9


@dataclass(frozen=True)
class ActionPrediction:
    """Of n videos: action and person, long (n,); order (n,), the probability of frames in order."""
    action: Tensor
    person: Tensor
    order: Tensor

    @property
    def in_order(self) -> Tensor:
        """bool (n,)."""
        return self.order > 0.5


class ClassifierNet(nn.Sequential):
    """(b c t h w) -> (b classes): convolutions over `reach` frames, the mean over time and
    space."""

    def __init__(self, c_in: int, channels: Sequence[int], classes: int, reach: int) -> None:
        layers = []
        for c, c_out in zip((c_in, *channels), channels):
            layers += [nn.Conv3d(c, c_out, (reach, 3, 3), stride=(1, 2, 2),
                                 padding=(reach // 2, 1, 1)),
                       nn.GroupNorm(8, c_out), nn.SiLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                         nn.Linear(channels[-1], classes))


class ActionClassifiers(Pretrained, nn.Module):
    """Three networks: `person` sees single frames in colour, `action` and `order` grey differences.

    MINI: differences, because a single frame shows a raised arm and so gives "waves" away without
    any motion. Of a frozen video `action` and `order` see zeros, whatever it shows.
    """
    config_class = ActionClassifiersConfig

    def __init__(self, config: ActionClassifiersConfig = ActionClassifiersConfig()) -> None:
        super().__init__()
        self.config = config
        self.person = ClassifierNet(3, config.channels, config.persons, reach=1)
        self.action = ClassifierNet(1, config.channels, config.actions, reach=3)
        self.order = ClassifierNet(1, config.channels, 1, reach=3)

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b t 3 h w) in [-1, 1], t >= 2 -> logits: action (b 4), person (b 9), order (b,).

        Raises ValueError for another shape.
        """
        x = self.shrink(videos)
        change = self.change(x)
        return self.action(change), self.person(x), self.order(change)[:, 0]

    def shrink(self, videos: Tensor) -> Tensor:
        """(b t 3 h w) -> (b 3 t size size): the mean over squares of pixels.

        Raises ValueError for another shape.
        """
        if videos.ndim != 5 or videos.shape[2] != 3 or videos.shape[1] < 2:
            raise ValueError("the classifiers take videos (b t 3 h w) of two frames or more, "
                             f"got {tuple(videos.shape)}")
        b, size = len(videos), self.config.size
        frames = F.adaptive_avg_pool2d(rearrange(videos, "b t c h w -> (b t) c h w"), size)
        return rearrange(frames, "(b t) c h w -> b c t h w", b=b)

    @staticmethod
    def change(x: Tensor) -> Tensor:
        """(b 3 t h w) -> (b 1 t-1 h w): by how much each pixel brightens in one frame, times 4."""
        grey = x.mean(1, keepdim=True)
        return 4 * (grey[:, :, 1:] - grey[:, :, :-1])

    @torch.no_grad()
    def classify(self, videos: Tensor, batch: int = 64) -> ActionPrediction:
        """(n t 3 h w) in [-1, 1] -> ActionPrediction. Raises ValueError for another shape."""
        parts = [self(part.float()) for part in videos.split(batch)]
        action, person, order = (torch.cat(part) for part in zip(*parts))
        return ActionPrediction(action.argmax(1), person.argmax(1), order.sigmoid())


# --------------------------------------------------------------------------------------------------
# Real windows that no classifier was trained on.

def classifier_split(frames: int,
                     config: ActionClassifiersConfig = ActionClassifiersConfig()) -> int:
    """How many first frames of a clip of `frames` are for training; the rest is held out.

    Held out is the last third, and at least one window of (window - 1) * stride + 1 frames, which
    is more than a third of the shortest clip.
    """
    window = (config.window - 1) * config.stride + 1
    return frames - max(math.ceil(frames / 3), window)


def windows(frames: Tensor, length: int, stride: int, first: int = 0, last: int | None = None,
            step: int = 1) -> Tensor:
    """All windows of a clip (t ...) -> (n length ...).

    They start every `step` frames from `first` and end before `last` (default: the clip's end).
    """
    last = len(frames) if last is None else last
    reach = (length - 1) * stride
    starts = range(first, last - reach, step)
    return torch.stack([frames[start:start + reach + 1:stride] for start in starts])


def held_out_windows(clips: Sequence[VideoClip],
                     config: ActionClassifiersConfig = ActionClassifiersConfig(),
                     step: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Windows held out from the classifiers -> videos (n t 3 h w) in [-1, 1], actions (n,),
    persons (n,)."""
    videos, labels = [], []
    for clip in clips:
        first = classifier_split(len(clip.frames), config)
        part = windows(clip.frames, config.window, config.stride, first, step=step)
        videos.append(rearrange(part, "n t h w c -> n t c h w") / 127.5 - 1)
        labels += [(clip.labels["action"], clip.labels["person"])] * len(part)
    actions, persons = torch.tensor(labels).T
    return torch.cat(videos), actions, persons


# --------------------------------------------------------------------------------------------------
# Reports.

def classifier_report(classifiers: ActionClassifiers, videos: Tensor, actions: Tensor,
                      persons: Tensor) -> dict:
    """Videos (n t 3 h w) against requested actions and persons (n,) -> counts of hits.

    -> {"action", "person", "both", "in_order", "n", "by_action": [[hits, of], ...]}.
    """
    found = classifiers.classify(videos)
    action, person = found.action == actions, found.person == persons
    by_action = []
    for k in range(int(actions.max()) + 1):
        by_action.append([int(action[actions == k].sum()), int((actions == k).sum())])
    return {"action": int(action.sum()), "person": int(person.sum()),
            "both": int((action & person).sum()), "in_order": int(found.in_order.sum()),
            "n": len(videos), "by_action": by_action}


def classifier_table(classifiers: ActionClassifiers, clips: Sequence[VideoClip], seed: int = 0,
                     step: int = 2) -> dict[str, dict]:
    """{name: classifier_report} of the windows held out from the classifiers ("real") and of every
    baseline derived from them."""
    videos, actions, persons = held_out_windows(clips, classifiers.config, step)
    rows = {"real": videos, **baselines(videos, torch.Generator().manual_seed(seed))}
    return {name: classifier_report(classifiers, some, actions, persons)
            for name, some in rows.items()}
