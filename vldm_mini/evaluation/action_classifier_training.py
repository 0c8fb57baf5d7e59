"""Training of the classifiers of `actions`: what is in order and what is not, on real clips only.

MINI: the networks are shown what decoders do to frames (noise, blur, flicker), so that they do not
take it for a lack of order. `python -m vldm_mini train classifiers --data actions` runs this.
"""
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vldm_mini.datasets.video import VideoClip
from vldm_mini.evaluation.action_classifiers import (
    ActionClassifiers,
    ActionClassifiersConfig,
    classifier_split,
    classifier_table,
)
from vldm_mini.evaluation.baselines import shuffled_order
from vldm_mini.weights import CARD, write_text

CLASSIFIER_STEPS = 800
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05


# --------------------------------------------------------------------------------------------------
# Single training examples.

@dataclass(frozen=True)
class TrainingPart:
    """The frames of a clip that are for training, (n size size 3) in [-1, 1], and its labels."""
    frames: Tensor
    action: int
    person: int


def training_parts(clips: Sequence[VideoClip],
                   config: ActionClassifiersConfig) -> list[TrainingPart]:
    """The first part of every clip, shrunk to the networks' size."""
    parts = []
    for clip in clips:
        frames = clip.frames[:classifier_split(len(clip.frames), config)]
        frames = rearrange(frames, "t h w c -> t c h w").float()
        small = F.adaptive_avg_pool2d(frames, config.size)
        small = rearrange(small, "t c h w -> t h w c") / 127.5 - 1
        parts.append(TrainingPart(small, clip.labels["action"], clip.labels["person"]))
    return parts


def _pick(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def sample_in_order(parts: Sequence[TrainingPart], config: ActionClassifiersConfig,
                    generator: torch.Generator) -> tuple[TrainingPart, Tensor]:
    """A random part, and a window of it in order (t h w c)."""
    part = parts[_pick(len(parts), generator)]
    stride = config.strides[_pick(len(config.strides), generator)]
    reach = (config.window - 1) * stride
    start = _pick(len(part.frames) - reach, generator)
    window = part.frames[start:start + reach + 1:stride]
    # MINI: a window played backwards counts as in order: who bends down also stands up again, and
    # clips are few
    if _pick(2, generator):
        window = window.flip(0)
    return part, window


def disorder(frames: Tensor, window: Tensor, generator: torch.Generator) -> Tensor:
    """A window (t h w c) out of order, from `window` or from all frames (n h w c) of its part.

    Half are shuffled. The others are what a classifier of order must not accept: frames sampled at
    random (what an image model gives), in half of these mirrored at random; a frozen video; and one
    that holds or repeats its frames.
    """
    t, kind = len(window), torch.rand((), generator=generator).item()
    if kind < 0.5:
        return window[shuffled_order(t, generator)]
    some = torch.randint(len(frames), (t,), generator=generator)
    if kind < 0.6:
        return frames[some]
    if kind < 0.7:
        mirrored = torch.rand(t, generator=generator)[:, None, None, None] < 0.5
        return torch.where(mirrored, frames[some].flip(2), frames[some])
    if kind < 0.85:
        return frames[some[:1]].expand_as(window)
    return window[torch.randint(t, (t,), generator=generator).sort().values]


def degrade(window: Tensor, generator: torch.Generator, noise: float = 1.0) -> Tensor:
    """What decoders and mixed speeds do to a video and the classifiers are to ignore.

    (t h w c) in [-1, 1] -> the same shape: shift, light and contrast of the whole window; frame by
    frame light, blur, and noise of two grain sizes (1 and 4 pixels), each absent in a third of the
    windows. noise scales the noise.
    """
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def normal(side: int) -> Tensor:
        return torch.randn(t, 3, side, side, generator=generator)

    t, size = window.shape[:2]
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    frames = rearrange(window.roll(shift, (1, 2)), "t h w c -> t c h w")
    frames = frames * uniform(0.8, 1.2) + uniform(-0.1, 0.1)
    soft = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    frames = frames + uniform(0, 1) * uniform(0.5, 1, t, 1, 1, 1) * (soft - frames)
    strength = noise * uniform(-0.5, 1, 3).clamp(min=0)
    coarse = F.interpolate(normal(size // 4), size=size, mode="bilinear", align_corners=False)
    frames = frames + 0.05 * strength[0] * normal(size) + 0.04 * strength[1] * coarse
    frames = frames + 0.03 * strength[2] * torch.randn(t, 1, 1, 1, generator=generator)
    return rearrange(frames, "t c h w -> t h w c")


# --------------------------------------------------------------------------------------------------
# Batches and loss.

@dataclass(frozen=True)
class ClassifierBatch:
    """Windows in order and not, (b 3 t s s), of persons (b,); and windows (m 3 t s s) of actions
    (m,) with less noise."""
    in_order: Tensor
    disordered: Tensor
    persons: Tensor
    videos: Tensor
    actions: Tensor


def _stack(windows: Sequence[Tensor]) -> Tensor:
    return rearrange(torch.stack(list(windows)), "b t h w c -> b c t h w")


def sample_batch(parts: Sequence[TrainingPart], config: ActionClassifiersConfig, size: int,
                 for_order: torch.Generator, for_action: torch.Generator) -> ClassifierBatch:
    """`size` windows in order, as many out of order, and twice as many for the action.

    MINI: those for the action have half the noise, or the slow end of a bend drowns in it.
    """
    in_order, disordered, persons = [], [], []
    for _ in range(size):
        part, window = sample_in_order(parts, config, for_order)
        out_of_order = disorder(part.frames, window, for_order)
        in_order.append(degrade(window, for_order))
        disordered.append(degrade(out_of_order, for_order))
        persons.append(part.person)
    pairs = [sample_in_order(parts, config, for_action) for _ in range(2 * size)]
    videos = [degrade(window, for_action, noise=0.5) for _, window in pairs]
    actions = [part.action for part, _ in pairs]
    return ClassifierBatch(_stack(in_order), _stack(disordered), torch.tensor(persons),
                           _stack(videos), torch.tensor(actions))


def classifier_loss(classifiers: ActionClassifiers, batch: ClassifierBatch) -> Tensor:
    """Cross-entropy of action, person and order, summed -> scalar."""
    both = torch.cat([batch.in_order, batch.disordered])
    order = classifiers.order(classifiers.change(both))[:, 0]
    truth = torch.zeros(len(both))
    truth[:len(batch.in_order)] = 1
    action = classifiers.action(classifiers.change(batch.videos))
    person = classifiers.person(batch.in_order)
    return (F.cross_entropy(action, batch.actions) + F.cross_entropy(person, batch.persons)
            + F.binary_cross_entropy_with_logits(order, truth))


# --------------------------------------------------------------------------------------------------
# Training.

def fit_classifiers(clips: Sequence[VideoClip], seed: int = 0, steps: int = CLASSIFIER_STEPS,
                    batch: int = 16, config: ActionClassifiersConfig = ActionClassifiersConfig(),
                    progress: Callable[[int, float], None] | None = None) -> ActionClassifiers:
    """Train on the first part of every clip, AdamW with a one-cycle schedule.

    progress(step, loss) is called after every step. The global random state stays as it was.
    """
    for_order = torch.Generator().manual_seed(seed)
    for_action = torch.Generator().manual_seed(seed + 1_000_003)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifiers = ActionClassifiers(config)
    parts = training_parts(clips, config)
    optimizer = torch.optim.AdamW(classifiers.parameters(), lr=LEARNING_RATE,
                                  weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        loss = classifier_loss(classifiers,
                               sample_batch(parts, config, batch, for_order, for_action))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, loss.item())
    return classifiers.eval()


def train_classifiers(folder: str | Path, seed: int = 0, clips: Sequence[VideoClip] | None = None,
                      steps: int = CLASSIFIER_STEPS,
                      progress: Callable[[int, float], None] | None = None) -> dict[str, dict]:
    """Train on `actions` and save weights, card and record in `folder` -> classifier_table of what
    was saved.

    clips: default all 72 of `actions`; the classifiers must know every person and combination that
    they are called on.
    """
    from vldm_mini.datasets import video

    clips = video.actions() if clips is None else clips
    losses, began = [], time.monotonic()

    def note(step: int, loss: float) -> None:
        losses.append(round(loss, 4))
        if progress:
            progress(step, loss)

    classifiers = fit_classifiers(clips, seed, steps, progress=note)
    minutes = round((time.monotonic() - began) / 60, 1)
    classifiers.save_pretrained(folder)
    table = classifier_table(ActionClassifiers.from_pretrained(folder), clips)
    write_text(Path(folder) / CARD, classifier_card(classifiers, table, seed, steps, minutes))
    record = {"seed": seed, "steps": steps, "minutes": minutes, "threads": torch.get_num_threads(),
              "torch": torch.__version__, "table": table, "loss_every_10": losses[::10]}
    write_text(Path(folder) / "record.json", json.dumps(record) + "\n")
    return table


def _parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()):,}"


def classifier_card(classifiers: ActionClassifiers, table: dict[str, dict], seed: int, steps: int,
                    minutes: float) -> str:
    """The model card, as Markdown."""
    config = classifiers.config
    rows = []
    for name, row in table.items():
        cells = (name, row["action"], row["person"], row["in_order"], row["n"])
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    by_action = ", ".join(f"{hits} of {n}" for hits, n in table["real"]["by_action"])
    return CLASSIFIER_CARD.format(
        rows="\n".join(rows), by_action=by_action, seed=seed, steps=steps, minutes=minutes,
        threads=torch.get_num_threads(), torch=torch.__version__,
        action=_parameters(classifiers.action), person=_parameters(classifiers.person),
        order=_parameters(classifiers.order), size=config.size, window=config.window,
        stride=config.stride, span=(config.window - 1) * config.stride + 1,
        strides=" or ".join(str(stride) for stride in sorted(set(config.strides))))


CLASSIFIER_CARD = """\
# Classifiers of `actions`: who, doing what, and are the frames in order

Three 3-D convolutional classifiers of videos
(`vldm_mini.evaluation.action_classifiers.ActionClassifiers`): `action` (4 classes, {action}
parameters), `person` (9, {person}), `order` (in order or not, {order}). Input: a video (t 3 h w)
in [-1, 1], shrunk to {size}x{size}. `person` sees single frames in colour; `action` and `order`
see only grey differences between frames, so that a pose alone says nothing.

**For** measuring whether a generator trained on `actions` shows what was requested. **Not for**
recognising people: nine classes are all there are.

**Trained on.** The Weizmann actions as packed by MoCoGAN (Gorelick et al., "Actions as Space-Time
Shapes"; Tulyakov et al., "MoCoGAN"): 72 clips of 64x64, mirrors included, for research and
teaching. All persons and combinations, also those held out from the generators. Held out from the
classifiers: the last third of each clip, and at least one window ({window} frames at stride
{stride}, {span} frames).

**Recipe.** `python -m vldm_mini train classifiers --data actions`, seed {seed}. {steps} steps of
16 windows in order and 16 that are not (half shuffled; else random frames of the clip, mirrored
or not, a frozen video, or one that holds frames), and of 32 in order with less noise for the
action; AdamW at 3e-3, one cycle; strides {strides}; shifted, relit, blurred and noised; played
backwards counts as in order. No generated video was used. {minutes} minutes with {threads} CPU
thread(s), torch {torch}.

**Metrics.** Windows of the held-out parts, every second start, mirrors included (mirrors and
neighbouring windows are not independent: they come from 36 clips of 9 people). How many were
classified correctly, and how many as in order:

| videos | action | person | in order | of |
|---|---|---|---|---|
{rows}

Actions of real videos, one by one: {by_action}. In the last third of a bend people straighten up
and stand; where next to nothing moves, the action classifier, which sees motion only, cannot be
right. `freeze` repeats the first frame: the action classifier then has one output, and its figure
is the share of one class. `stutter` samples frames with replacement and sorts them. `backwards`
passes by design.

**Licence.** Weights: research and teaching, with attribution, as the data. Code: Apache-2.0.
"""
