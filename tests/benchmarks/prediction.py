"""Do continuations of driving clips keep their speed and their content? Against what came next.

200 held-out clips of 8 key frames, S = 1 and S = 2 given, guidance as shipped, 8 steps.
context_psnr_db: the network's own output for the given frames, decoded, against the decoded given
latents (nothing is copied in). beats_copy_share: how often the mean of 8 samples of the next
frame is nearer to the true one than a copy of the last given frame is, over clips whose true
change exceeds the median, without guidance (for a mean, guidance exaggerates);
beats_copy_share_single: one of the samples. A blurred copy also beats the copy, so both are
compared with a blurred copy too (beats_blurred_copy_share). speed_spearman_s1, _s2: the speed of
the three frames generated after the last given one, read off the true road (`views_of_road`),
against the speed of the renderer's car; speed_error, m/s. Beside them: of the true frames, of
other clips, of a copy. classified_speed_spearman, the scene classifier's speed of all generated
frames against its speed of the true ones, is no measure here: it depends on the scene as well as
on motion, and the scene is the same.

On `actions`, arm_goes_on: held-out windows in which what moves rises (or sinks) clearly from
frame 0 to 1 and in truth goes on to frame 2; how often the generated frame 2 does, with S = 2,
and beside it with S = 1 and for a copy.

speeds_distinguished, within scenes: the same last frame, and before it the one from half a
key-frame step ago, or from two: slow and fast. The renderer continues at both speeds. How often
the two continuations, three frames each, are nearer to their own truths than crossed; 1/2 by
chance, and exactly so with S = 1, which is not conditioned on the frame before. Scenes that move
(over 3 m/s).
"""
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vldm_mini import weights
from vldm_mini.context import context_mask
from vldm_mini.datasets import driving, video
from vldm_mini.diffusion import rng
from vldm_mini.evaluation import driving_samples, measures, samples
from vldm_mini.pipeline import VideoLDM
from vldm_mini.training.data import load_clips
from vldm_mini.training.sizes import SIZES

from ._common import number, shipped_folder

N, SAMPLES, STEPS = 200, 8, 8
MADE = 3                            # generated frames whose speed is read


# --------------------------------------------------------------------------------------------------
# Continuations.

@torch.no_grad()
def continuations(model: VideoLDM, z: Tensor, labels: Tensor, given: int, sample: int,
                  steps: int | None = None, guidance: float | None = None) -> Tensor:
    """Windows conditioned on the first `given` frames of z (n t c h w) -> latents like z.

    sample: the number of the sample, which decides the noise. guidance: of context; None as
    shipped.
    """
    guidance = model.config.context_guidance if guidance is None else guidance
    out = []
    for at in range(0, len(z), 8):
        part = z[at:at + 8]
        generators = [rng(17 + sample, given, at + i) for i in range(len(part))]
        noise = torch.stack([torch.randn(part.shape[1:], generator=g) for g in generators])
        mask = context_mask(part.shape[1], given).expand(len(part), -1)
        known = part * mask[:, :, None, None, None]
        out.append(model.sample_with_context("prediction", labels[at:at + 8], known, mask, noise,
                                             generators, context_guidance=guidance, steps=steps))
    return torch.cat(out)


def kept(folder: Path, name: str, make: Callable[[], Tensor]) -> Tensor:
    """Latents from make(), or from runs/samples/ if the same weights gave them before."""
    key = samples.key(folder, ("autoencoder", "image", "prediction"), prediction=name)
    return samples.kept(key, lambda: {"z": make().half()})["z"].float()


def encoded(model: VideoLDM, clips: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """-> videos (n t 3 h w), labels (n, 2), latents (n t c h w)."""
    x = torch.stack([video.to_float(clip.frames) for clip in clips])
    z = torch.stack([model.autoencoder.encode(frames) for frames in x])
    return x, driving_samples.labels_of(clips), z


@torch.no_grad()
def held_out(model: VideoLDM, n: int) -> tuple[list, Tensor, Tensor, Tensor]:
    """-> n clips, videos (n 8 3 64 128), labels (n, 2), latents (n 8 c h w)."""
    clips = driving_samples.real(n, first=8000)[1]
    return clips, *encoded(model, clips)


# --------------------------------------------------------------------------------------------------
# Speed, read off the true road.

def views_of_road(clip: driving.DrivingClip, given: int, made: int = MADE, fastest: float = 12,
                  step: float = 1.0) -> tuple[Tensor, Tensor]:
    """The true road after the last given frame, as seen at speeds 0, `step`, ..., `fastest` m/s.

    -> (speeds (v,), frames uint8 (made * (v - 1) + 1, ...)): at speed number j the generated
    frame k shows view j * (k + 1).
    """
    speeds = np.arange(0, fastest + step / 2, step)
    after, last = np.arange(0, 60, 1 / 30), clip.times[given - 1]
    distance = clip.scene.travelled(last + after) - clip.scene.travelled([last])
    wanted = np.arange(made * (len(speeds) - 1) + 1) * step / driving.KEY_FPS
    # the small slope makes distance increase where the car stands
    times = np.interp(wanted, distance + 1e-6 * after, after)
    return torch.from_numpy(speeds).float(), torch.from_numpy(clip.scene.render(last + times))


def read_speed(frames: Tensor, roads: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The speed in m/s (n,) whose views of the true road are nearest to generated frames (n k 3 h
    w), all k together and at half size."""
    half, found = torch.nn.AvgPool2d(2), []
    for some, (speeds, views) in zip(frames, roads):
        off = torch.cdist(half(video.to_float(views)).flatten(1), half(some).flatten(1)).square()
        j = torch.arange(len(speeds))
        total = sum(off[j * (k + 1), k] for k in range(len(some)))
        found.append(speeds[total.argmin()])
    return torch.stack(found)


def true_speed(clips: Sequence, given: int) -> Tensor:
    """Mean speed of the renderer's car over the MADE frames after the given ones, m/s (n,)."""
    travelled = torch.tensor(np.stack([clip.scene.travelled(clip.times) for clip in clips]))
    distance = travelled[:, given + MADE - 1] - travelled[:, given - 1]
    return distance * driving.KEY_FPS / MADE


@torch.no_grad()
def speeds_distinguished(model: VideoLDM, folder: Path, n: int, now: float = 4.0) -> float:
    """Share of n scenes whose slow and fast continuations are nearer to their own truths than
    crossed."""
    seeds = [seed for seed in driving.seeds("held_out", 3 * n, first=12_000)
             if driving.Scene(seed).speed(np.array([now]))[0] > 3]
    made, true = [], []
    for rate in (2, 0.5):
        fps = rate * driving.KEY_FPS
        clips = [driving.DrivingClip(seed, 8, 64, fps, start=now - 1 / fps) for seed in seeds[:n]]
        x, labels, z = encoded(model, clips)
        make = partial(continuations, model, z, labels, 2, 0, STEPS)
        made.append(model.decode(kept(folder, f"{n} at rate {rate}", make))[:, 2:2 + MADE])
        true.append(x[:, 2:2 + MADE])

    def off(i: int, k: int) -> Tensor:
        return (made[i] - true[k]).square().flatten(1).mean(1)
    right = off(0, 0) + off(1, 1) < off(0, 1) + off(1, 0)
    return number(right.float().mean(), 4)


# --------------------------------------------------------------------------------------------------
# `actions`: does an arm go on as it went?

def height(videos: Tensor, still: Tensor) -> Tensor:
    """Where what moves is, in videos (n t 3 h w) before `still` (n 1 3 h w) -> (n t), 0 at the
    bottom, 1 at the top."""
    weight = ((videos - still).abs().mean(2) - 0.15).clamp(min=0)
    rows = torch.linspace(1, 0, videos.shape[-2])[:, None]
    return (weight * rows).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-6)


def arm_windows(model: VideoLDM, clips: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """Every third window of the clips -> videos (n 8 3 h w), median frames (n 1 3 h w), labels."""
    x, still, labels = [], [], []
    for clip in clips:
        frames = video.to_float(clip.frames)
        starts = range(0, len(frames) - video.span(8, 3), 3)
        x += [frames[i::3][:8] for i in starts]
        still += [frames.median(0).values[None]] * len(starts)
        action = video.ACTIONS[clip.labels["action"]]
        labels += [model.labels(action=action)] * len(starts)
    return torch.stack(x), torch.stack(still), torch.cat(labels)


@torch.no_grad()
def arm_goes_on() -> dict:
    """-> {"S = 2", "S = 1", "copy": share of held-out real windows that go on as they went,
    "windows": how many}."""
    folder = weights.shipped("actions")
    model, (_, clips) = VideoLDM.from_pretrained(folder), load_clips("actions", SIZES["s"])
    x, still, labels = arm_windows(model, clips)
    change = height(x[:, :3], still).diff(dim=1)
    clear = (change.abs() > change.abs().median(0).values).all(1)
    same_direction = change[:, 0].sign() == change[:, 1].sign()
    on = (clear & same_direction).nonzero()[:, 0]
    x, still, labels, direction = x[on], still[on], labels[on], change[on, 0].sign()
    z = torch.stack([model.autoencoder.encode(frames) for frames in x])

    def share(pairs: Tensor) -> float:
        found = height(pairs, still).diff(dim=1)[:, 0].sign()
        return number((found == direction).float().mean(), 4)
    two = kept(folder, "arms 2", lambda: continuations(model, z, labels, 2, 0))
    # conditioned on frame 1 only, the direction is unknown
    later = torch.cat([z[:, 1:], z[:, -1:]], dim=1)
    one = kept(folder, "arms 1", lambda: continuations(model, later, labels, 1, 0))
    return {"S = 2": share(model.decode(two)[:, 1:3]), "S = 1": share(model.decode(one)[:, :2]),
            "copy": share(x[:, [1, 1]]), "windows": len(on)}


# --------------------------------------------------------------------------------------------------
# All figures.

def against_copies(model: VideoLDM, folder: Path, x: Tensor, labels: Tensor, z: Tensor) -> dict:
    """Shares of clips whose generated next frame is nearer to the true one than a copy is."""
    change = (x[:, 2] - x[:, 1]).square().flatten(1).mean(1)
    moving = change > change.median()
    next_frames = []
    for k in range(SAMPLES):
        make = partial(continuations, model, z[moving], labels[moving], 2, k, STEPS, 1.0)
        latents = kept(folder, f"{len(z)} next {k}", make)
        next_frames.append(model.decode(latents[:, :3])[:, 2])
    sampled, last = torch.stack(next_frames), model.decode(z)[moving, 1]
    blurred = torch.nn.functional.avg_pool2d(last, 5, 1, 2)

    def off(frames: Tensor) -> Tensor:
        return (frames - x[moving, 2]).square().flatten(1).mean(1)

    def share(frames: Tensor, other: Tensor) -> float:
        return number((off(frames) < off(other)).float().mean(), 4)
    mean = sampled.mean(0)
    return {"beats_copy_share": share(mean, last),
            "beats_copy_share_single": share(sampled[0], last),
            "beats_blurred_copy_share": share(mean, blurred),
            "beats_blurred_copy_share_single": share(sampled[0], blurred),
            "blurred copy": share(blurred, last)}


@torch.no_grad()
def run(folder: Path | None = None, n: int = N) -> dict:
    """All figures; arguments are for tests."""
    folder = shipped_folder(folder, driving_samples.WEIGHTS)
    model, (classifier, _) = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)
    clips, x, labels, z = held_out(model, n)
    given_frames = model.decode(z)
    classified = classifier.classify(x[:, 2:]).speed
    truth = torch.tensor([float(clip.scene.speed(clip.times[2:]).mean()) for clip in clips])
    out = {}
    for given in (1, 2):
        make = partial(continuations, model, z, labels, given, 0, STEPS)
        y = model.decode(kept(folder, f"{n} {given} long {STEPS}", make))
        roads, after = [views_of_road(clip, given) for clip in clips], slice(given, given + MADE)
        speed, read = true_speed(clips, given), read_speed(y[:, after], roads)
        of_classifier = classifier.classify(y[:, 2:]).speed
        psnr = measures.psnr(y[:, :given], given_frames[:, :given]).mean()
        out[given] = dict(
            speed=number(measures.spearman(read, speed), 4),
            speed_error=number((read - speed).abs().mean(), 2),
            classified_speed=number(measures.spearman(of_classifier, classified), 4),
            classified_speed_of_the_truth=number(measures.spearman(of_classifier, truth), 4),
            context_psnr_db=number(psnr, 2))
    copies = against_copies(model, folder, x, labels, z)
    permuted = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    beside = {
        "beats_copy_share, blurred copy": copies.pop("blurred copy"),
        "speed of the true frames": number(
            measures.spearman(read_speed(x[:, after], roads), speed), 4),
        "speed of other clips": number(measures.spearman(read[permuted], speed), 4),
        "speed_error of a copy": number(speed.mean(), 2),
        "classified speed of other clips": number(
            measures.spearman(classified[permuted], classified), 4),
        "classifier on true frames, against the truth": number(
            measures.spearman(classified, truth), 4)}
    return {"context_psnr_db": min(row["context_psnr_db"] for row in out.values()), **copies,
            "speed_spearman_s1": out[1]["speed"], "speed_spearman_s2": out[2]["speed"], "n": n,
            "classified_speed_spearman": {f"S = {given}": row["classified_speed"]
                                          for given, row in out.items()},
            "arm_goes_on": arm_goes_on(),
            "speeds_distinguished": speeds_distinguished(model, folder, max(2, n // 3)),
            "beside": beside, "by_s": out}
