"""Recipes of super-resolution (paper, section 3.4): an image upsampler on patches, then temporal layers on it.

    python -m vldm_mini train upsampler        --data driving --size s       in pixels, eq. (5)          (chapter 08)
    python -m vldm_mini train latent_upsampler --data driving --size s       in latents of an autoencoder of its own

Data: `driving`, `signs`, or a folder of videos of at least 256 pixels a side. Needs no other stage.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vldm_mini import machine, weights
from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.datasets import driving, video
from vldm_mini.diffusion import denoising_error
from vldm_mini.evaluation import measures
from vldm_mini.temporal import TemporalLayers, VideoModel, insert
from vldm_mini.training import Objective, Settings, rng, train
from vldm_mini.training.recipes import (
    PREDICTION,
    SCHEDULE,
    SHIPPED_IN,
    autoencoder_objectives,
    card,
    draw_tau,
    unit_variance,
)
from vldm_mini.upsampler import KINDS, TAU_GAMMA, SidewaysConv, Upsampler, UpsamplerConfig, degraded, detail, shrunk


@dataclass(frozen=True)
class Size:
    """Widths, data and steps of one size."""
    pixels: int                                        # height of a large frame
    patch: int                                         # side of what is trained on, in its pixels (paper: 80)
    frames: int                                        # T
    films: int                                         # of `driving`
    widths: dict                                       # of an UpsamplerConfig
    autoencoder: AutoencoderConfig
    settings: dict                                     # stage -> Settings


def _settings(autoencoder, image, temporal):
    """Each (steps, batch, learning rate)."""
    return dict(autoencoder=Settings(*autoencoder, warmup=20), image=Settings(*image), temporal=Settings(*temporal))


# MINI: the autoencoder is half as wide as that of small frames, its norms see one place each: it works in tiles
SIZES = {
    "xs": Size(64, 32, 3, 4, dict(channels=(16, 24), emb_channels=64), AutoencoderConfig((8, 16), local=True),
               _settings((10, 4, 2e-3), (10, 4, 2e-3), (10, 2, 2e-3))),
    "s": Size(256, 80, 8, 400, dict(), AutoencoderConfig((32, 64), local=True),
              _settings((900, 16, 1.5e-3), (4000, 12, 2e-3), (2400, 4, 2e-3))),
    "m": Size(256, 80, 8, 4000, dict(channels=(128, 192), blocks=2, emb_channels=512),
              AutoencoderConfig((64, 128), local=True),
              _settings((8000, 64, 1e-3), (30000, 128, 5e-4), (20000, 16, 5e-4))),
    "paper": Size(512, 80, 8, 80000, dict(channels=(160, 320, 640), blocks=2, emb_channels=640),
                  AutoencoderConfig((128, 256), blocks=2, local=True),
                  _settings((100000, 64, 1e-4), (400000, 64, 1e-4), (84000, 32, 1e-5)))}

# MINI: logit-normal tau; tau_gamma up to 100 (noise of 0.32 in [-1, 1]), half of it below 25: the paper's range is not
# known. What another model makes is off by far less than that
TAU_MIDDLE, TAU_SPREAD = 0.0, 1.4
HELD_OUT = 0.19                               # of real clips: 4 of the 20 of `signs`
FPS = 16 * driving.KEY_FPS                    # frames a second of `driving` that it learns from: the end of the stack


def dial_at(size):
    """The Size of that name. Raises ValueError for a name that the dial does not have."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
    return SIZES[size]


def settings_for(size, stage, steps=None, seed=0):
    """The Settings of a part, with another number of steps or seed if given."""
    settings = replace(dial_at(size).settings[stage], seed=seed)
    return replace(settings, steps=steps) if steps else settings


def large_clips(data, dial, split="train", n=None, out=None):
    """Large films, uint8 (t h w 3) each, sides divisible by 16. Of `driving` n drives; rendered once, kept beside `out`.

    Raises ValueError for `actions`, which is small, and where a film has fewer frames than T. Smaller films of your own
    are enlarged, and have no detail to learn from.
    """
    if data == "driving":
        n = n or dial.films
        path = Path(out) / "large" / f"{split}-{n}x{dial.frames}-{dial.pixels}-{FPS:g}fps.safetensors" if out else None
        if path and path.is_file():
            return list(weights.load_tensors(path)["films"])
        films = [driving.Drive(seed, dial.frames, dial.pixels, FPS, start=2.0).frames
                 for seed in driving.seeds(split, n)]
        if path:
            weights.save_tensors(path, dict(films=torch.stack(films)))
        return films
    if data == "actions":
        raise ValueError("the frames of `actions` have 64 x 64 pixels, and no detail to learn from: give --data driving, "
                         "--data signs, or a folder of larger videos")
    clips = video.split(video.load(data, size=dial.pixels), HELD_OUT)[split != "train"]
    for clip in clips:
        if len(clip.frames) < dial.frames:
            raise ValueError(f"{clip.name} has {len(clip.frames)} frames; to learn from it takes {dial.frames}")
    return [clip.frames for clip in clips]


def draw_patch(films, frames, side, generator):
    """A patch of a film, whose corner lies on the grid of 4x4 pixels -> (frames 3 side side) in [-1, 1]."""
    pick = lambda n: int(torch.randint(n, (1,), generator=generator))                                   # noqa: E731
    film = films[pick(len(films))]
    at, top, left = pick(len(film) - frames + 1), 4 * pick((film.shape[1] - side) // 4 + 1), \
        4 * pick((film.shape[2] - side) // 4 + 1)
    return video.to_float(film[at:at + frames, top:top + side, left:left + side])


def draw_level(generator, most=TAU_GAMMA):
    """One tau_gamma, (1,) long, from 0 to most: the square of a uniform number, so that low levels are met most."""
    return (torch.rand(1, generator=generator).square() * (most + 1)).long()


def upsampling_loss(model, films, frames, side, settings, autoencoder=None, most=TAU_GAMMA):
    """The loss of training.Objective, eq. (5): of single frames if frames is 1, else of clips.

    autoencoder: diffusion in its latents; None: in pixels. most: largest tau_gamma; 0: no noise augmentation.
    """
    def loss(step, samples):
        draw = [rng(settings.seed, step, sample) for sample in samples]
        x = torch.stack([draw_patch(films, frames, side, g) for g in draw]).to(machine.device())
        low, tau_gamma = shrunk(x), torch.cat([draw_level(g, most) for g in draw]).to(x.device)
        noise = lambda x: torch.stack([torch.randn(x.shape[1:], generator=g) for g in draw]).to(x)      # noqa: E731
        given = degraded(SCHEDULE, low, tau_gamma, noise(low))
        with torch.no_grad():
            z = autoencoder.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if autoencoder else detail(x, given)
        z, given = (z[:, 0], given[:, 0]) if frames == 1 else (z, given)
        tau = draw_tau(draw, samples, settings.batch, TAU_MIDDLE, TAU_SPREAD).to(z.device)
        error = denoising_error(SCHEDULE, lambda z, tau: model(z, tau, low=given, tau_gamma=tau_gamma), z, tau,
                                noise(z), PREDICTION)
        each = error.square().flatten(1).mean(1)
        return each.mean(), dict(tau=tau, loss=each.detach())
    return loss


def train_upsampler(data="driving", size="s", out="runs/driving-s", steps=None, seed=0, resume=True, start=None):
    """theta on frames, then phi on clips, theta frozen: in pixels. Saves out/upsampler/image and /temporal."""
    return _train("pixel", data, size, out, steps, seed, resume, start)


def train_latent_upsampler(data="driving", size="s", out="runs/driving-s", steps=None, seed=0, resume=True, start=None):
    """The same in latents of an autoencoder of its own, trained first. Saves out/latent_upsampler/..."""
    return _train("latent", data, size, out, steps, seed, resume, start)


def _train(kind, data, size, out, steps, seed, resume, start):
    """start: a folder with image/ (and temporal/, autoencoder/) to go on from, in place of random weights.

    A part whose weights lie in `out` without the state of a run (shipped ones, put there) is taken as it is.
    """
    dial, folder, start = dial_at(size), Path(out) / KINDS[kind], Path(start) if start else None
    if start and not any((start / part).is_dir() for part in dial.settings):
        raise FileNotFoundError(f"--start {start} holds none of {', '.join(dial.settings)}: give the folder of an upsampler")
    films, about = large_clips(data, dial, out=out), dict(data=data, size=size)
    begin = lambda part: start / part if start and (start / part).is_dir() else None                    # noqa: E731
    done = lambda part: (folder / part / weights.WEIGHTS).is_file() and not (folder / part / "state.pt").is_file()  # noqa: E731
    settings = {part: settings_for(size, part, steps, seed) for part in dial.settings}
    if kind == "latent" and not done("autoencoder"):
        _train_autoencoder(films, dial, folder, settings["autoencoder"], begin("autoencoder"), resume, about)
    coder = Autoencoder.from_pretrained(folder / "autoencoder").to(machine.device()).requires_grad_(False) \
        if kind == "latent" else None
    if not done("image"):
        torch.manual_seed(seed)
        config = UpsamplerConfig(**dial.widths)
        if coder:
            c = coder.config.latent_channels
            config = replace(config, in_channels=c, out_channels=c, patch=1)
        theta = Upsampler.from_pretrained(begin("image")).train() if begin("image") else Upsampler(config)
        theta = theta.to(machine.device())
        loss = upsampling_loss(theta, films, 1, dial.patch, settings["image"], coder)
        record = train(folder / "image", settings["image"], [Objective("image", theta, loss, muon=True)], resume=resume)
        theta.save_pretrained(folder / "image", card(f"{KINDS[kind]} (theta)", record=record, metrics={}, **about),
                              SHIPPED_IN)
    theta = Upsampler.from_pretrained(folder / "image").to(machine.device()).requires_grad_(False)
    torch.manual_seed(seed)
    # MINI: convolutions over time alone; attention at a quarter of a megapixel is beyond a laptop
    layers = TemporalLayers.from_pretrained(begin("temporal"), theta, conv=SidewaysConv).train() \
        if begin("temporal") else insert(theta, conv=SidewaysConv, attention=None)
    loss = upsampling_loss(VideoModel(theta, layers), films, dial.frames, dial.patch, settings["temporal"], coder)
    record = train(folder / "temporal", settings["temporal"], [Objective("temporal", layers, loss, muon=True)],
                   watch=lambda: dict(alpha={k: round(v, 4) for k, v in layers.alphas().items()}), resume=resume)
    layers.save_pretrained(folder / "temporal", card(f"{KINDS[kind]} (phi)", record=record, metrics={}, **about),
                           SHIPPED_IN)
    return record


def _train_autoencoder(films, dial, folder, settings, start, resume, about):
    """The autoencoder of large frames, trained on patches. Saves it."""
    torch.manual_seed(settings.seed)
    model = Autoencoder.from_pretrained(start).train() if start else Autoencoder(dial.autoencoder)
    model = model.to(machine.device())
    objectives = autoencoder_objectives(model, lambda g: draw_patch(films, 1, dial.patch, g)[0], settings)
    record = train(folder / "autoencoder", settings, objectives, resume=resume)
    frames = torch.stack([film[0] for film in films[:32]])
    model.config = unit_variance(model, frames)
    x = video.to_float(frames[:16]).to(machine.device())
    with torch.no_grad():
        psnr = float(measures.psnr(model.decode(model.encode(x)).clamp(-1, 1), x).mean())
    model.save_pretrained(folder / "autoencoder", card("latent_upsampler autoencoder", record=record, **about,
                                                       metrics={"PSNR on training frames, dB": round(psnr, 2)}))


STAGES = {"upsampler": train_upsampler, "latent_upsampler": train_latent_upsampler}
