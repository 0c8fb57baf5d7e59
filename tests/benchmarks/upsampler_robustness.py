"""Is noise augmentation worth it where the small film was generated, and is not the mean of a true large one?

160 generated drives of 64x128, one frame each, a patch of it made large by the image upsampler (alpha = 1). Arms: the
shipped network, told noise of several levels tau_gamma that was put on the frame; a network of the same recipe, seed,
steps and batch that was trained without any. Fréchet distance of the driving classify's features to those of true large
frames, of other drives. The level is chosen on one half of the frames (best_tau_gamma), all is scored on the other:
distance_augmented: that level, distance_plain: the other network; distance_at_0: the shipped one at tau_gamma = 0.
Beside them bicubic, other true frames (floor), grain laid over distance_at_0's frames (does the measure reward grain?),
the same arms on true small frames (where noise can only hurt), and a sheet of patches, data/media/robustness.webp.
"""
from dataclasses import replace

import torch

from vldm_mini import machine, weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples, driving_samples, measures
from vldm_mini.teaching import pictures
from vldm_mini.temporal import insert
from vldm_mini.training import Objective, Record, Settings, train, upsampler_recipes
from vldm_mini.upsampler import Upsampler, UpsamplerConfig, VideoUpsampler, bicubic, shrunk

from .upsampler import HEIGHT, MARGIN, WIDTH, drives, inner, kept

N, LEVELS, SEED, GRAIN = 160, (0, 10, 25, 50, 100), 3, 0.02


def without(folder):
    """The image upsampler trained without noise augmentation, else as the shipped one. Kept in runs/samples/."""
    settings = replace(Settings(**Record.load(folder / "upsampler" / "image").settings), precision="")
    out = action_samples.RUNS / "samples" / f"{action_samples.key(folder, ('upsampler/image',), without=settings.steps)}-plain"
    image = out / "upsampler" / "image"
    if not (image / weights.WEIGHTS).is_file():
        dial = upsampler_recipes.dial_at("s")
        films = upsampler_recipes.large_clips("driving", dial, out=action_samples.RUNS / "samples")
        torch.manual_seed(settings.seed)
        theta = Upsampler(UpsamplerConfig(**dial.widths)).to(machine.device())
        loss = upsampler_recipes.upsampling_loss(theta, films, 1, dial.patch, settings, most=0)
        with torch.enable_grad():
            train(image, settings, [Objective("image", theta, loss, muon=True)])
        theta.save_pretrained(image, dtype=upsampler_recipes.SHIPPED_IN)
    theta = Upsampler.from_pretrained(image).to(machine.device())
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
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    classify, x = driving_samples.classifiers(folder)[0], drives(n)[:, :1]
    plain_folder, plain = without(folder)
    ours = VideoUpsampler.from_pretrained(folder)
    look = lambda y: classify.classify(inner(y).expand(-1, 2, -1, -1, -1)).frames[:, 0]                       # noqa: E731
    true = look(x)
    choose, score = slice(0, None, 2), slice(1, None, 2)
    far = lambda y, half: round(measures.frechet(look(y)[half], true[half]), 6)                          # noqa: E731

    def arms(low):
        make = kept(folder, "pixel")
        out = {f"tau_gamma {k}": make(ours, low, seed=SEED, alpha=1, tau_gamma=k) for k in levels}
        out["trained without"] = kept(plain_folder, "pixel")(plain, low, seed=SEED, alpha=1)
        grain = torch.randn(out[f"tau_gamma {levels[0]}"].shape, generator=torch.Generator().manual_seed(0))
        out[f"tau_gamma {levels[0]}, and grain"] = (out[f"tau_gamma {levels[0]}"] + GRAIN * grain).clamp(-1, 1)
        return out | {"bicubic": bicubic(low)}
    films = arms(patches(driving_samples.films(folder, n=n)[0]))
    best = min(levels, key=lambda k: far(films[f"tau_gamma {k}"], choose))
    generated = {name: far(y, score) for name, y in films.items()}
    if n == N:
        sheet = torch.cat([inner(y) for y in films.values()], dim=1)[:6]                # a patch a row, an arm a column
        pictures.write_beside(action_samples.ROOT / "data" / "films" / "robustness.webp",
                          pictures.encode_image(pictures.strip(sheet).image, "webp", quality=85))
    return {"distance_augmented": generated[f"tau_gamma {best}"], "distance_plain": generated["trained without"],
            "distance_at_0": generated[f"tau_gamma {levels[0]}"], "best_tau_gamma": best,
            "floor": far(drives(n, 70_000)[:, :1], score), "generated": generated,
            "of_true_small_frames": {name: far(y, score) for name, y in arms(shrunk(x)).items()}, "n": n // 2}
