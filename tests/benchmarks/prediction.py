"""Does a drive go on as it was going? The network's continuation of held-out key frames against what came.

200 held-out clips of 8 key frames, S = 1 and S = 2 given, guidance as shipped, 8 steps. context_psnr_db: the network's
own answer for the given frames, decoded, against the decoded given latents (nothing is pasted in). beats_copy_share: how
often the mean of 8 samples of the next frame is nearer to the true one than a copy of the last given frame is, over clips
whose true change exceeds the median, without guidance (a mean wants no exaggeration); beats_copy_share_single: one of
them. A blurred copy passes that as well, so both are held against a blurred copy too (beats_blurred_copy_share).
speed_spearman_s1, _s2: the speed of the three frames made after the last given one, read off the true road (`road`),
against the speed at which the renderer drove on; speed_error, m/s. Beside them: of the true frames, of other clips, of a
copy. And the classify's speed of all frames made against its speed of the true ones (judged_speed_spearman), which is no
measure here: it reads a part of a speed off the scene, which every continuation shares.

On `actions`, arm_goes_on: held-out windows in which what moves rises (or sinks) clearly from frame 0 to 1 and in truth
goes on so to frame 2; how often frame 2 as made does, with S = 2, and beside it with S = 1 and for a copy.

told_apart, within scenes: the same last frame, and before it the one from half a key-frame step ago, or from two: slow
and fast. The renderer drives on at both speeds. How often the two continuations, three frames each, are nearer to their
own truths than crossed; 1/2 by chance, and exactly so with S = 1, which is not told the frame before. Scenes that move
(over 3 m/s).
"""
from functools import partial

import numpy as np
import torch

from vldm_mini import weights
from vldm_mini.context import context_mask
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_samples, driving_samples, measures
from vldm_mini.pipeline import VideoLDM
from vldm_mini.training import recipes, rng

N, SAMPLES, STEPS = 200, 8, 8


@torch.no_grad()
def continued(model, z, labels, given, k, steps=None, guidance=None):
    """Windows that go on from the first `given` frames of z (n t c h w), sample k -> latents like z."""
    out, guidance = [], model.config.context_guidance if guidance is None else guidance
    for at in range(0, len(z), 8):
        part = z[at:at + 8]
        generators = [rng(17 + k, given, at + i) for i in range(len(part))]
        noise = torch.stack([torch.randn(part.shape[1:], generator=g) for g in generators])
        mask = context_mask(part.shape[1], given).expand(len(part), -1)
        out.append(model.sample_with_context("prediction", labels[at:at + 8], part * mask[:, :, None, None, None], mask, noise,
                                      generators, context_guidance=guidance, steps=steps))
    return torch.cat(out)


@torch.no_grad()
def held_out(model, n):
    """-> clips, films (n 8 3 64 128), labels (n, 2), latents (n 8 c h w)."""
    clips = driving_samples.real(n, first=8000)[1]
    return clips, *encoded(model, clips)


def encoded(model, clips):
    """-> films (n t 3 h w), labels (n, 2), latents (n t c h w)."""
    x = torch.stack([driving_samples.floats(clip.frames) for clip in clips])
    return x, driving_samples.labels_of(clips), torch.stack([model.autoencoder.encode(film) for film in x])


def road(clip, given, made=3, fastest=12, step=1.0):
    """The true road after the last frame given, from where the next `made` ones would be at speeds 0, `step`, ...,
    `fastest` m/s -> (speeds (v,), frames uint8 (made * (v - 1) + 1, ...)): at speed j frame k sees number j * (k + 1).
    """
    speeds, after, last = np.arange(0, fastest + step / 2, step), np.arange(0, 60, 1 / 30), clip.times[given - 1]
    far = clip.scene.travelled(last + after) - clip.scene.travelled([last])
    times = np.interp(np.arange(made * (len(speeds) - 1) + 1) * step / driving.KEY_FPS, far + 1e-6 * after, after)
    return torch.from_numpy(speeds).float(), torch.from_numpy(clip.scene.render(last + times))


def road_speed(frames, roads):
    """How fast the frames made (n k 3 h w) drive, m/s (n,): which speed's views of the true road, as `road` gives them,
    they are nearest to, all together and at half size."""
    half, found = torch.nn.AvgPool2d(2), []
    for film, (speeds, views) in zip(frames, roads):
        off = torch.cdist(half(video.to_float(views)).flatten(1), half(film).flatten(1)).square()
        j = torch.arange(len(speeds))
        found.append(speeds[sum(off[j * (k + 1), k] for k in range(len(film))).argmin()])
    return torch.stack(found)


@torch.no_grad()
def told_apart(model, folder, n, now=4.0):
    """-> share of n scenes whose slow and fast continuations are nearer to their own truths than crossed."""
    seeds = [seed for seed in driving.seeds("held_out", 3 * n, first=12_000) if driving.Scene(seed).speed([now])[0] > 3]
    made, true = [], []
    for rate in (2, 0.5):
        fps = rate * driving.KEY_FPS
        clips = [driving.DrivingClip(seed, 8, 64, fps, start=now - 1 / fps) for seed in seeds[:n]]
        x, labels, z = encoded(model, clips)
        y = kept(folder, f"{n} told {rate}", partial(continued, model, z, labels, 2, 0, STEPS))
        made.append(model.decode(y)[:, 2:5])
        true.append(x[:, 2:5])
    off = lambda i, k: (made[i] - true[k]).square().flatten(1).mean(1)                                  # noqa: E731
    return round(float((off(0, 0) + off(1, 1) < off(0, 1) + off(1, 0)).float().mean()), 4)


def height(films, still):
    """Where what moves is, of films (n t 3 h w) before `still` (n 1 3 h w) -> (n t), 0 at the bottom, 1 on top."""
    weight = ((films - still).abs().mean(2) - 0.15).clamp(min=0)
    return (weight * torch.linspace(1, 0, films.shape[-2])[:, None]).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-6)


@torch.no_grad()
def arms():
    """-> {"S = 2", "S = 1", "copy": share of held-out real windows that go on as they went, "windows": how many}."""
    folder = weights.shipped("actions")
    model, (_, clips) = VideoLDM.from_pretrained(folder), recipes.load_clips("actions", recipes.SIZES["s"])
    x, still, labels = [], [], []
    for clip in clips:
        film = video.to_float(clip.frames)
        starts = range(0, len(film) - video.span(8, 3), 3)
        x += [film[i::3][:8] for i in starts]
        still += [film.median(0).values[None]] * len(starts)
        labels += [model.labels(action=video.ACTIONS[clip.labels["action"]])] * len(starts)
    x, still, labels = torch.stack(x), torch.stack(still), torch.cat(labels)
    change = height(x[:, :3], still).diff(dim=1)
    clear = change.abs() > change.abs().median(0).values
    on = (clear.all(1) & (change[:, 0].sign() == change[:, 1].sign())).nonzero()[:, 0]
    x, still, labels, change = x[on], still[on], labels[on], change[on]
    z = torch.stack([model.autoencoder.encode(film) for film in x])

    def share(films):
        return round(float((height(films, still).diff(dim=1)[:, 0].sign() == change[:, 0].sign()).float().mean()), 4)
    out = {"S = 2": share(model.decode(kept(folder, "arms 2", lambda: continued(model, z, labels, 2, 0)))[:, 1:3])}
    # told frame 1 only: nothing says where it came from
    late = torch.cat([z[:, 1:], z[:, -1:]], dim=1)
    alone = model.decode(kept(folder, "arms 1", lambda: continued(model, late, labels, 1, 0)))[:, :2]
    return out | {"S = 1": share(alone), "copy": share(x[:, [1, 1]]), "windows": len(on)}


def kept(folder, name, make):
    """Latents from runs/samples/ if these weights made them before."""
    key = action_samples.key(folder, ("autoencoder", "image", "prediction"), prediction=name)
    path = action_samples.RUNS / "samples" / f"{key}.safetensors"
    if not path.is_file():
        weights.save_tensors(path, {"z": make().half()})
    return weights.load_tensors(path)["z"].float()


@torch.no_grad()
def run(folder=None, n=N):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    model, classify = VideoLDM.from_pretrained(folder), driving_samples.classifiers(folder)[0]
    clips, x, labels, z = held_out(model, n)
    ref = model.decode(z)
    true = classify.classify(x[:, 2:]).speed
    told = torch.tensor([float(clip.scene.speed(clip.times[2:]).mean()) for clip in clips])
    way = torch.tensor(np.stack([clip.scene.travelled(clip.times) for clip in clips]))
    moving = (change := (x[:, 2] - x[:, 1]).square().flatten(1).mean(1)) > change.median()
    out = {}
    for given in (1, 2):
        make = partial(continued, model, z, labels, given, 0, STEPS)
        y = model.decode(kept(folder, f"{n} {given} long {STEPS}", make))
        speed = classify.classify(y[:, 2:]).speed
        roads, at = [road(clip, given) for clip in clips], slice(given, given + 3)
        drove, drives = (way[:, given + 2] - way[:, given - 1]) * driving.KEY_FPS / 3, road_speed(y[:, at], roads)
        out[given] = dict(speed=round(measures.spearman(drives, drove), 4),
                          speed_error=round(float((drives - drove).abs().mean()), 2),
                          judged_speed=round(measures.spearman(speed, true), 4),
                          judged_speed_of_the_truth=round(measures.spearman(speed, told), 4),
                          context_psnr_db=round(float(measures.psnr(y[:, :given], ref[:, :given]).mean()), 2))
    nexts = [kept(folder, f"{n} next {k}", partial(continued, model, z[moving], labels[moving], 2, k, STEPS, 1.0))
             for k in range(SAMPLES)]
    films = torch.stack([model.decode(some[:, :3])[:, 2] for some in nexts])
    off = lambda y: (y - x[moving, 2]).square().flatten(1).mean(1)                                      # noqa: E731
    copy = off(ref[moving, 1])
    share = lambda y, other=copy: round(float((off(y) < other).float().mean()), 4)                      # noqa: E731
    # a blurred copy beats the copy too: the baseline that counts
    blurred = torch.nn.functional.avg_pool2d(ref[moving, 1], 5, 1, 2)
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return {"context_psnr_db": min(row["context_psnr_db"] for row in out.values()),
            "beats_copy_share": share(films.mean(0)), "beats_copy_share_single": share(films[0]),
            "beats_blurred_copy_share": share(films.mean(0), off(blurred)),
            "beats_blurred_copy_share_single": share(films[0], off(blurred)),
            "speed_spearman_s1": out[1]["speed"], "speed_spearman_s2": out[2]["speed"], "n": n,
            "judged_speed_spearman": {f"S = {given}": row["judged_speed"] for given, row in out.items()},
            "arm_goes_on": arms(), "told_apart": told_apart(model, folder, max(2, n // 3)),
            "beside": {"beats_copy_share, blurred copy": share(blurred),
                       "speed of the true frames": round(measures.spearman(road_speed(x[:, at], roads), drove), 4),
                       "speed of other clips": round(measures.spearman(drives[mixed], drove), 4),
                       "speed_error of a copy": round(float(drove.mean()), 2),
                       "judged speed of other clips": round(measures.spearman(true[mixed], true), 4),
                       "classify of true frames against the truth": round(measures.spearman(true, told), 4)}, "by_s": out}
