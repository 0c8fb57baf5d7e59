"""Is noise augmentation worth it where the small film was generated, and is not the mean of a true large one?

200 generated drives of 64x128, one frame each, a patch of it made large by the image upsampler (alpha = 1). Arms: the
shipped network, told noise of several levels tau_gamma that was put on the frame; a network of the same recipe, seed and
steps that was trained without any. Fréchet distance of the driving judge's features to those of true large frames, of
other drives. distance_augmented: the best level, distance_plain: the other network; distance_at_0: the shipped one at
tau_gamma = 0. Beside them bicubic, the same arms on true small frames (where noise can only hurt), and a sheet of
patches, runs/samples/upsampler-robustness.png.
"""
from dataclasses import replace

import torch

from vldm_mini import metrics, recipes_upsampler, show, weights
from vldm_mini.datasets import video
from vldm_mini.temporal import insert
from vldm_mini.training import Player, Record, Settings, train
from vldm_mini.upsampler import Upsampler, UpsamplerConfig, VideoUpsampler, bicubic, shrunk

from . import _drives, _samples
from .upsampler import HEIGHT, MARGIN, WIDTH, drives, inner, kept

N, LEVELS, SEED = 200, (0, 10, 25, 50, 100), 3


def without(folder, steps=None):
    """The image upsampler trained without noise augmentation, else as the shipped one. Kept in runs/samples/."""
    settings = replace(Settings(**Record.load(folder / "upsampler" / "image").settings), precision="")
    out = _samples.RUNS / "samples" / f"{_samples.key(folder, ('upsampler/image',), without=settings.steps)}-upsampler"
    if not (out / "image" / weights.WEIGHTS).is_file():
        dial = recipes_upsampler.dial_at("s")
        films = recipes_upsampler.large_films("driving", dial, out=_samples.RUNS / "samples")
        torch.manual_seed(settings.seed)
        theta = Upsampler(UpsamplerConfig(**dial.widths))
        loss = recipes_upsampler.upsampling_loss(theta, films, 1, dial.patch, settings, most=0)
        with torch.enable_grad():
            train(out / "image", settings, [Player("image", theta, loss, muon=True)])
        theta.save_pretrained(out / "image", dtype=recipes_upsampler.SHIPPED_IN)
    theta = Upsampler.from_pretrained(out / "image")
    return out, VideoUpsampler(theta, insert(theta, attention=None))


def patches(films):
    """One frame of each film uint8 (n t h w 3), a patch with margin of it -> (n 1 3 24 40)."""
    h, w, out = HEIGHT // 4 + 2 * MARGIN, WIDTH // 4 + 2 * MARGIN, []
    for i, film in enumerate(films):
        g = torch.Generator().manual_seed(i)
        top, left = (int(torch.randint(size - side + 1, (1,), generator=g)) for size, side in zip(film.shape[1:], (h, w)))
        out.append(video.to_float(film[len(film) // 2][None])[..., top:top + h, left:left + w])
    return torch.stack(out)


@torch.no_grad()
def run(folder=None, n=N, levels=LEVELS):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(_drives.WEIGHTS)
    judge, x = _drives.judges(folder)[0], drives(n)[:, :1]
    plain_folder, plain = without(folder)
    ours, true = VideoUpsampler.from_pretrained(folder), judge.judge(inner(x)).frames.flatten(0, -2)
    far = lambda y: round(metrics.frechet(judge.judge(y).frames.flatten(0, -2), true), 6)               # noqa: E731

    def table(low):
        out = {f"tau_gamma {k}": inner(kept(folder, "pixel")(ours, low, seed=SEED, alpha=1, tau_gamma=k)) for k in levels}
        out["trained without"] = inner(kept(plain_folder, "pixel")(plain, low, seed=SEED, alpha=1))
        out["bicubic"] = inner(bicubic(low))
        return out, {name: far(y) for name, y in out.items()}
    films, generated = table(patches(_drives.films(folder, n=n)[0]))
    _, of_true = table(shrunk(x))
    sheet = torch.cat(list(films.values()), dim=1)[:8]                                  # one row a patch, one column an arm
    show.strip(sheet, scale=3).save(_samples.RUNS / "samples" / "upsampler-robustness.png")
    best = min((name for name in generated if name.startswith("tau_gamma")), key=generated.get)
    return {"distance_augmented": generated[best], "distance_plain": generated["trained without"],
            "distance_at_0": generated[f"tau_gamma {levels[0]}"], "best_tau_gamma": int(best.split()[1]),
            "generated": generated, "of_true_small_frames": of_true, "n": n}
