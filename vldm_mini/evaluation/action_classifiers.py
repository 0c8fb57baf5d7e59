"""Measures of a film, and the classifiers: small networks that say who is seen, doing what, and if the frames are in order.

Paper: section 4 measures with FVD and human raters. MINI: on 36 clips of nine people neither says much, so that we ask
what can be checked. A figure stands beside its trivial baselines (freeze, shuffle, alpha = 1): a measure that one of
them passes is not a measure. Films are `b t c h w` in [-1, 1]. No function here changes what it is given; sums run in
float64. Chapter 04 uses the classifiers, chapter 12 the measures.
"""
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vldm_mini.weights import CARD, Pretrained, write_text

# ---------------------------------------------------------------------------------------------------------------------
# The classifiers


@dataclass(frozen=True)
class ActionClassifiersConfig:
    """Films are judged at size x size. `window` frames, `stride` apart in the source, is what they were trained on."""
    size: int = 32
    window: int = 8
    stride: int = 3
    strides: tuple = (2, 3, 3)          # MINI: drawn from in training, so that a slightly slow film is still in order
    channels: tuple = (16, 32, 64)
    actions: int = 4
    persons: int = 9


@dataclass(frozen=True)
class ActionPrediction:
    """What the classifiers say of n films: action, person long (n,); order (n,), the probability of frames in order."""
    action: torch.Tensor
    person: torch.Tensor
    order: torch.Tensor

    @property
    def in_order(self):
        """bool (n,)."""
        return self.order > 0.5


class ClassifierNet(nn.Sequential):
    """(b c t h w) -> (b classes): convolutions over `reach` frames, then the mean over time and space."""

    def __init__(self, c_in, channels, classes, reach):
        layers = []
        for c, c_out in zip((c_in, *channels), channels):
            layers += [nn.Conv3d(c, c_out, (reach, 3, 3), stride=(1, 2, 2), padding=(reach // 2, 1, 1)),
                       nn.GroupNorm(8, c_out), nn.SiLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


class ActionClassifiers(Pretrained, nn.Module):
    """Three networks. `person` looks at single frames in colour; `action` and `order` see only how frames differ.

    MINI: grey differences, because a single frame shows an arm up and so tells "waves" without any motion; of a frozen
    film `action` and `order` see nothing at all, and answer the same whatever is on it.
    """
    config_class = ActionClassifiersConfig

    def __init__(self, config=ActionClassifiersConfig()):
        super().__init__()
        self.config = config
        self.person = ClassifierNet(3, config.channels, config.persons, reach=1)
        self.action = ClassifierNet(1, config.channels, config.actions, reach=3)
        self.order = ClassifierNet(1, config.channels, 1, reach=3)

    def forward(self, films):
        """(b t 3 h w) in [-1, 1], t >= 2 -> logits: action (b 4), person (b 9), order (b,)."""
        x = self.shrink(films)
        change = self.change(x)
        return self.action(change), self.person(x), self.order(change)[:, 0]

    def shrink(self, films):
        """(b t 3 h w) -> (b 3 t size size), the mean over squares of pixels. Raises ValueError for another shape."""
        if films.ndim != 5 or films.shape[2] != 3 or films.shape[1] < 2:
            raise ValueError(f"the classifiers want films (b t 3 h w) of two frames or more, got {tuple(films.shape)}")
        b, size = len(films), self.config.size
        frames = F.adaptive_avg_pool2d(rearrange(films, "b t c h w -> (b t) c h w"), size)
        return rearrange(frames, "(b t) c h w -> b c t h w", b=b)

    @staticmethod
    def change(x):
        """(b 3 t h w) -> (b 1 t-1 h w): how much brighter each pixel gets from frame to frame, times 4."""
        grey = x.mean(1, keepdim=True)
        return 4 * (grey[:, :, 1:] - grey[:, :, :-1])

    @torch.no_grad()
    def classify(self, films, batch=64):
        """(n t 3 h w) in [-1, 1] -> ActionPrediction."""
        parts = [self(part.float()) for part in films.split(batch)]
        action, person, order = (torch.cat(p) for p in zip(*parts))
        return ActionPrediction(action.argmax(1), person.argmax(1), order.sigmoid())


# -- what the classifiers learn from ---------------------------------------------------------------------------------------


def classifier_split(frames, config=ActionClassifiersConfig()):
    """Frames of a clip -> how many of the first are for training; the rest is held out from the classifiers.

    The last third, and at least one window of (window - 1) * stride + 1 frames: a third of the shortest clip is less.
    """
    return frames - max(math.ceil(frames / 3), (config.window - 1) * config.stride + 1)


def windows(frames, length, stride, first=0, last=None, step=1):
    """All windows of a clip (t ...): -> (n length ...), starts every `step` frames from `first`, all before `last`."""
    last = len(frames) if last is None else last
    starts = range(first, last - (length - 1) * stride, step)
    return torch.stack([frames[s:s + (length - 1) * stride + 1:stride] for s in starts])


def held_windows(clips, config=ActionClassifiersConfig(), step=2):
    """Windows that no classify has learnt from -> films (n t 3 h w) in [-1, 1], actions (n,), persons (n,)."""
    films, labels = [], []
    for clip in clips:
        part = windows(clip.frames, config.window, config.stride, classifier_split(len(clip.frames), config), step=step)
        films.append(rearrange(part, "n t h w c -> n t c h w") / 127.5 - 1)
        labels += [(clip.labels["action"], clip.labels["person"])] * len(part)
    actions, persons = torch.tensor(labels).T
    return torch.cat(films), actions, persons


def shuffled(n, generator):
    """A random order of n frames, never the right one and never the right one backwards. long (n,)."""
    forward = torch.arange(n)
    while True:
        order = torch.randperm(n, generator=generator)
        if not torch.equal(order, forward) and not torch.equal(order, forward.flip(0)):
            return order


def disorder(clip, film, generator):
    """A film (t h w c) that is not in order, made of `film` or of the training part `clip` (n h w c) that it is from.

    Half are shuffled; the others are what a classify of order must not be fooled by: frames drawn at random (what an image
    model gives), mirrored at random in half of these, a frozen film, and one that holds or repeats its frames.
    """
    t, kind = len(film), torch.rand((), generator=generator).item()
    if kind < 0.5:
        return film[shuffled(t, generator)]
    some = torch.randint(len(clip), (t,), generator=generator)
    if kind < 0.6:
        return clip[some]
    if kind < 0.7:
        mirrored = torch.rand(t, generator=generator)[:, None, None, None] < 0.5
        return torch.where(mirrored, clip[some].flip(2), clip[some])
    if kind < 0.85:
        return clip[some[:1]].expand_as(film)
    return film[torch.randint(t, (t,), generator=generator).sort().values]


def degrade(film, generator, noise=1.0):
    """What decoders and mixed speeds do to a film and classifiers are to look past. (t h w c) in [-1, 1] -> same.

    Shift, light and contrast of the film; and frame by frame light, blur, and noise of two sizes (1 and 4 pixels).
    """
    t, size = film.shape[:2]
    u = lambda low, high, *n: low + (high - low) * torch.rand(n, generator=generator)                    # noqa: E731
    normal = lambda s: torch.randn(t, 3, s, s, generator=generator)                                      # noqa: E731
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    frames = rearrange(film.roll(shift, (1, 2)), "t h w c -> t c h w") * u(0.8, 1.2) + u(-0.1, 0.1)
    soft = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)
    frames = frames + u(0, 1) * u(0.5, 1, t, 1, 1, 1) * (soft - frames)
    # strengths are zero in a third of the films
    strength = noise * u(-0.5, 1, 3).clamp(min=0)
    blotches = F.interpolate(normal(size // 4), size=size, mode="bilinear", align_corners=False)
    frames = frames + 0.05 * strength[0] * normal(size) + 0.04 * strength[1] * blotches
    frames = frames + 0.03 * strength[2] * torch.randn(t, 1, 1, 1, generator=generator)
    return rearrange(frames, "t c h w -> t h w c")


def _sample(clips, config, generator):
    """One clip of the training parts: all its frames, a film in order (t h w c) that is cut from it, and its labels."""
    pick = lambda n: int(torch.randint(n, (), generator=generator))                                      # noqa: E731
    frames, labels = clips[pick(len(clips))]
    stride = config.strides[pick(len(config.strides))]
    reach = (config.window - 1) * stride
    start = pick(len(frames) - reach)
    film = frames[start:start + reach + 1:stride]
    # MINI: a film played backwards counts as in order: what bends down also stands up, and clips are few.
    return frames, film.flip(0) if pick(2) else film, labels


def _stack(films):
    return rearrange(torch.stack(films), "b t h w c -> b c t h w")


def _order_batch(clips, config, size, generator):
    """-> films in order (b 3 t s s), films out of order (b 3 t s s), persons (b,)."""
    right, wrong, persons = [], [], []
    for _ in range(size):
        frames, film, (_, person) = _sample(clips, config, generator)
        disordered = disorder(frames, film, generator)
        right, wrong = right + [degrade(film, generator)], wrong + [degrade(disordered, generator)]
        persons.append(person)
    return _stack(right), _stack(wrong), torch.tensor(persons)


def _action_batch(clips, config, size, generator):
    """-> films (b 3 t s s), actions (b,). MINI: half the noise, or the slow end of a bend drowns in it."""
    drawn = [_sample(clips, config, generator) for _ in range(size)]
    return (_stack([degrade(film, generator, noise=0.5) for _, film, _ in drawn]),
            torch.tensor([action for _, _, (action, _) in drawn]))


def _training_parts(clips, config):
    """Clips -> [(frames of the first part, float (n size size 3) in [-1, 1]; (action, person))]."""
    parts = []
    for clip in clips:
        frames = clip.frames[:classifier_split(len(clip.frames), config)]
        small = F.adaptive_avg_pool2d(rearrange(frames, "t h w c -> t c h w").float(), config.size)
        labels = clip.labels["action"], clip.labels["person"]
        parts.append((rearrange(small, "t c h w -> t h w c") / 127.5 - 1, labels))
    return parts


def classifier_loss(classifiers, right, wrong, persons, films, actions):
    """Cross-entropy of person and order on films in order and not, of action on films of its own -> scalar."""
    order = classifiers.order(torch.cat([classifiers.change(right), classifiers.change(wrong)]))[:, 0]
    truth = torch.cat([torch.ones(len(right)), torch.zeros(len(wrong))])
    return (F.cross_entropy(classifiers.action(classifiers.change(films)), actions)
            + F.cross_entropy(classifiers.person(right), persons) + F.binary_cross_entropy_with_logits(order, truth))


CLASSIFIER_STEPS = 800


def fit_classifiers(clips, seed=0, steps=CLASSIFIER_STEPS, batch=16, config=ActionClassifiersConfig(), progress=None):
    """Train classifiers on the first part of every clip, one-cycle AdamW at 3e-3. `progress(step, loss)`: called a step."""
    for_order, for_action = (torch.Generator().manual_seed(seed + k) for k in (0, 1_000_003))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifiers = ActionClassifiers(config)
    parts = _training_parts(clips, config)
    optimiser = torch.optim.AdamW(classifiers.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        loss = classifier_loss(classifiers, *_order_batch(parts, config, batch, for_order),
                          *_action_batch(parts, config, 2 * batch, for_action))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(step, loss.item())
    return classifiers.eval()


# -- what the classifiers say of films they have not seen, and of the trivial baselines ------------------------------------


def baselines(films, generator):
    """Films made of the given ones (n t c h w) that a measure of video must tell from them: name -> (n t c h w)."""
    n, t = films.shape[:2]
    each = torch.arange(n)[:, None]
    orders = torch.stack([shuffled(t, generator) for _ in range(n)])                                     # n t
    held = torch.randint(t, (n, t), generator=generator).sort(1).values
    return {"shuffled": films[each, orders], "freeze": films[:, :1].expand_as(films), "stutter": films[each, held],
            "backwards": films.flip(1)}


def classifier_report(classifiers, films, actions, persons):
    """Films (n t 3 h w), asked-for actions, persons (n,) -> counts of hits, and [hits, of] by action."""
    verdict = classifiers.classify(films)
    action, person = verdict.action == actions, verdict.person == persons
    by_action = [[int(action[actions == k].sum()), int((actions == k).sum())] for k in range(int(actions.max()) + 1)]
    return {"action": int(action.sum()), "person": int(person.sum()), "both": int((action & person).sum()),
            "in_order": int(verdict.in_order.sum()), "n": len(films), "by_action": by_action}


def classifier_table(classifiers, clips, seed=0, step=2):
    """name -> classifier_report, for the windows held out from the classifiers and for every baseline made of them."""
    films, actions, persons = held_windows(clips, classifiers.config, step)
    rows = {"real": films, **baselines(films, torch.Generator().manual_seed(seed))}
    return {name: classifier_report(classifiers, film, actions, persons) for name, film in rows.items()}


def train_classifiers(folder, seed=0, clips=None, steps=CLASSIFIER_STEPS, progress=None):
    """Train the classifiers on `actions` and save them with their model card in `folder` -> classifier_table of the saved ones.

    clips: default all 72 of `actions`, every person and combination: a classify must know whom it is asked about.
    """
    from vldm_mini.datasets import video

    clips = video.actions() if clips is None else clips
    losses, began = [], time.monotonic()

    def keep(step, loss):
        losses.append(round(loss, 4))
        if progress:
            progress(step, loss)

    classifiers = fit_classifiers(clips, seed, steps, progress=keep)
    minutes = round((time.monotonic() - began) / 60, 1)
    classifiers.save_pretrained(folder)
    table = classifier_table(ActionClassifiers.from_pretrained(folder), clips)
    write_text(Path(folder) / CARD, classifier_card(classifiers, table, seed, steps, minutes))
    record = {"seed": seed, "steps": steps, "minutes": minutes, "threads": torch.get_num_threads(),
              "torch": torch.__version__, "table": table, "loss_every_10": losses[::10]}
    write_text(Path(folder) / "record.json", json.dumps(record) + "\n")
    return table


def classifier_card(classifiers, table, seed, steps, minutes):
    """The model card, as Markdown."""
    count = lambda net: f"{sum(p.numel() for p in net.parameters()):,}"                                  # noqa: E731
    rows = "\n".join(f"| {name} | {r['action']} | {r['person']} | {r['in_order']} | {r['n']} |"
                     for name, r in table.items())
    return CLASSIFIER_CARD.format(
        rows=rows, by_action=", ".join(f"{hits} of {n}" for hits, n in table["real"]["by_action"]),
        seed=seed, steps=steps, minutes=minutes, threads=torch.get_num_threads(),
        torch=torch.__version__, action=count(classifiers.action), person=count(classifiers.person), order=count(classifiers.order),
        size=classifiers.config.size, window=classifiers.config.window, stride=classifiers.config.stride,
        strides=" or ".join(str(s) for s in sorted(set(classifiers.config.strides))))


CLASSIFIER_CARD = """\
# ActionClassifiers of `actions`: who, doing what, and are the frames in order

Three 3-D convolutional classifiers of films (`vldm_mini.metrics.ActionClassifiers`): `action` (4 classes, {action} parameters),
`person` (9, {person}), `order` (in order or not, {order}). Input: a film (t 3 h w) in [-1, 1], shrunk to {size}x{size}.
`person` looks at single frames in colour; `action` and `order` see only grey differences between frames, so that a
pose alone says nothing.

**For** measuring what a generator trained on `actions` was asked for and gave. **Not for** recognising people: they
know nine.

**Data.** The Weizmann actions as packed by MoCoGAN (Gorelick et al., "Actions as Space-Time Shapes"; Tulyakov et al.,
"MoCoGAN"): 72 clips of 64x64, mirrors included, for research and teaching. All persons and combinations, also those
held out from the generators. Held out from the classifiers: the last third of each clip, and at least one window ({window}
frames at stride {stride}, 22 frames).

**Recipe.** `python -m vldm_mini train classifiers --data actions`, or `vldm_mini.metrics.train_classifiers(folder, seed={seed})`.
{steps} steps of 16 films in order and 16 that are not (half shuffled; else random frames of the clip, mirrored or not,
a frozen film, or one that holds frames), and of 32 in order with less noise for the action; AdamW at 3e-3, one cycle;
strides {strides}; shifted, relit, blurred and noised; played backwards counts as in order. No generated film was seen.
{minutes} minutes with {threads} CPU thread(s) on a busy machine of two cores, torch {torch}.

**Metrics.** Windows of the held-out parts, every second start, mirrors included (mirrors and neighbouring windows are
not independent: 36 clips of 9 people stand behind them). How many were named right, and how many judged in order:

| films | action | person | in order | of |
|---|---|---|---|---|
{rows}

Actions of real films, one by one: {by_action}. In the last third of a bend people straighten up and
stand; where next to nothing moves, the action classify, which sees motion only, cannot know.
`freeze` repeats the first frame: the action classify answers always the same, and its figure is the share of one class.
`stutter` draws frames with repetition and sorts them. `backwards` passes by design.

**Licence.** Weights: research and teaching, with attribution, as the data. Code: Apache-2.0.
"""
