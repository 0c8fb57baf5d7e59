"""Does the video upsampler shimmer less than the same network frame by frame, and is it better than bicubic?

Held-out drives of 256x512, 8 frames at 30 a second; given are the means of 4x4 pixels. To see details as large as they
are, all is scored on patches of 64x128 (they see four small pixels more on each side), one a drive. Arms: the temporal
layers as learned; alpha = 1, the image upsampler frame by frame from the same noise; bicubic. flicker_ratio
(`measures.flicker`), video_distance_gain and frame_distance_ratio (Fréchet distances of the driving classify's features):
video against frame by frame. mean_gain_db: PSNR of the mean of 8 samples minus bicubic's; single_gain_db: of one.
sharpness_error_ratio: by how much the gradient energy is off, ours over bicubic's; feature_ratio: Fréchet distance of
frames, ours over bicubic's. Beside them: the video film blurred in time, and, as the floor, true films of as many other
drives.

Where much moves, a film whose detail moves with the scene still flickers by this measure, since it is other detail than
the true film's: a perfect sample errs twice as much as the mean of all samples. perfect_flicker_ratio is that bound,
from the mean of 8, over frame by frame. And an baseline passes it: the image upsampler with the same noise in every
frame ("stuck"), whose detail sticks to the screen while the scene moves on. So beside it: along_motion_ratio, video
against frame by frame, the change along the motion of the true film where that moves (`along_motion`; a perfect sample
has the true film's own), and still_flicker_ratio, where it stands still (no pixel of 9x9 changes by more than 0.01 of
2; a perfect sample has none). Fréchet distances of both arms lie far under the floor (other true drives, at the same n),
so beside video_distance_gain film_error_gain, frame by frame over video: how far the features of each film are off
those of the same true film (`film_error`).
"""
import torch

from vldm_mini import weights
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_samples, driving_samples, measures
from vldm_mini.upsampler import KINDS, VideoUpsampler, bicubic, shrunk

from ._flicker import along_motion, blurred, edges, followed, still_flicker

N, MEANS, SAMPLES, FRAMES, FPS, MARGIN, SEED = 128, 24, 8, 8, 30, 4, 3
HEIGHT, WIDTH = 64, 128                                                                  # of what the classify looks at


def drives(n=N, first=50_000):
    """Held-out patches (n 8 3 96 160): what is scored, and 16 large pixels around it."""
    films, h, w = [], HEIGHT + 8 * MARGIN, WIDTH + 8 * MARGIN
    for i, seed in enumerate(driving.seeds("held_out", n, first)):
        g = torch.Generator().manual_seed(i)
        top, left = (4 * int(torch.randint((size - side) // 4 + 1, (1,), generator=g))
                     for size, side in ((256, h), (512, w)))
        times = 2.0 + torch.arange(FRAMES).numpy() / FPS
        films.append(driving.Scene(seed).render(times, 256, crop=(top, left, h, w)))
    return torch.stack([video.to_float(torch.from_numpy(film)) for film in films])


def inner(x):
    """Without the margin."""
    return x[..., 4 * MARGIN:-4 * MARGIN, 4 * MARGIN:-4 * MARGIN]


def film_error(said, real):
    """Mean square by which the features of films are off those of the same true films, in units of their spread."""
    return float(((said.films - real.films) / real.films.std(0)).square().mean())


@torch.no_grad()
def compared(up, x, others, motion, classify, make, means=MEANS):
    """All figures of one upsampler. x, others (n t 3 h w) large, with margin; motion: of x without it (`followed`);
    make(up, low, **how) -> films like x."""
    low, true = shrunk(x), inner(x)
    out = {"video": inner(make(up, low, seed=SEED)), "frame by frame": inner(make(up, low, seed=SEED, alpha=1)),
           "bicubic": inner(bicubic(low))}
    out["video, blurred in time"] = blurred(out["video"])
    out["stuck"] = inner(make(up, low, seed=SEED, alpha=1, stuck=True))
    said, real = {name: classify.classify(y) for name, y in out.items()}, classify.classify(true)
    floor = classify.classify(inner(others))
    far = lambda a, b, kind: measures.frechet(getattr(a, kind).flatten(0, -2), getattr(b, kind).flatten(0, -2))  # noqa: E731
    row = lambda name, y: dict(psnr_db=float(measures.psnr(y, true).mean()),                             # noqa: E731
                               flicker=float(measures.flicker(y, true).mean()),
                               still_flicker=still_flicker(y, true), along_motion=along_motion(y, *motion),
                               sharpness=float((edges(y) / edges(true)).median()),
                               sharpness_error=float((edges(y) / edges(true) - 1).abs().median()),
                               video_distance=far(said[name], real, "films"),
                               frame_distance=far(said[name], real, "frames"), film_error=film_error(said[name], real))
    table = {name: row(name, y) for name, y in out.items()}
    some = torch.stack([out["video"][:means], *(inner(make(up, low[:means], seed=SEED + k)) for k in range(1, SAMPLES))])
    mean = lambda y: float(measures.psnr(y[:means], true[:means]).mean())                                # noqa: E731
    mean_flicker, plain_flicker = (measures.flicker(y[:means], true[:means]).mean()
                                   for y in (some.mean(0), out["frame by frame"]))
    # a mean of k samples errs by (1 + 1/k) times the least possible, a perfect sample by twice that
    bound = 2 / (1 + 1 / SAMPLES) * mean_flicker / plain_flicker
    ours, plain, none = (table[k] for k in ("video", "frame by frame", "bicubic"))
    return {"flicker_ratio": round(ours["flicker"] / plain["flicker"], 4),
            "perfect_flicker_ratio": round(float(bound), 4),
            "along_motion_ratio": round(ours["along_motion"] / plain["along_motion"], 4),
            "still_flicker_ratio": round(ours["still_flicker"] / plain["still_flicker"], 4),
            "video_distance_gain": round(plain["video_distance"] / ours["video_distance"], 3),
            "film_error_gain": round(plain["film_error"] / ours["film_error"], 3),
            "frame_distance_ratio": round(ours["frame_distance"] / plain["frame_distance"], 3),
            "mean_gain_db": round(mean(some.mean(0)) - mean(out["bicubic"]), 3),
            "single_gain_db": round(ours["psnr_db"] - none["psnr_db"], 3),
            "sharpness_error_ratio": round(ours["sharpness_error"] / none["sharpness_error"], 4),
            "feature_ratio": round(ours["frame_distance"] / none["frame_distance"], 4),
            "table": {name: {k: round(v, 7) for k, v in row.items()} for name, row in table.items()},
            "true_along_motion": round(along_motion(true, *motion), 6),
            "followed_share": round(float(motion[1].float().mean()), 3),
            "floor": {kind: round(far(floor, real, kind), 6) for kind in ("films", "frames")}, "n": len(x),
            "precision": up.precision}


class Stuck(VideoUpsampler):
    """The same noise in every frame."""

    def noise(self, shape, seed, first, kind):
        return super().noise((shape[0], 1, *shape[2:]), seed, 0, kind).expand(shape)


def kept(folder, kind):
    """make(up, low, stuck=, **how) whose films are kept in runs/samples/, by weights and settings."""
    def make(up, low, stuck=False, **how):
        stages = [f"{KINDS[kind]}/{part}" for part in ("autoencoder", "image", "temporal")]
        asked = dict(how, stuck=stuck, precision=up.precision, low=f"{tuple(low.shape)} {float(low.double().sum()):.6f}")
        path = action_samples.RUNS / "samples" / f"{action_samples.key(folder, stages, **asked)}.safetensors"
        if not path.is_file():
            up = Stuck(up.theta, up.layers, up.autoencoder, up.precision) if stuck else up
            films = torch.cat([up(part, **how) for part in low.split(4)])
            weights.save_tensors(path, {"films": films.half()})
        return weights.load_tensors(path)["films"].float()
    return make


def run(folder=None, n=N, means=MEANS):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(driving_samples.WEIGHTS)
    classify, x, others = driving_samples.classifiers(folder)[0], drives(n), drives(n, 70_000)
    motion = followed(inner(x))
    found = {kind: compared(VideoUpsampler.from_pretrained(folder, kind), x, others, motion, classify, kept(folder, kind),
                            means) for kind in KINDS}
    return found["pixel"] | {"latent": found["latent"]}
