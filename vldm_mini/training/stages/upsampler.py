"""Stages of super-resolution (paper, section 3.4): an image upsampler on patches, then phi on it.

`upsampler` diffuses pixels (eq. 5), `latent_upsampler` latents of an autoencoder of its own,
trained first. Data: `driving`, `signs`, or a folder of videos of at least 256 pixels a side.
Chapter 08 walks through it.
"""
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ... import machine, weights
from ...autoencoder import Autoencoder
from ...datasets import driving, video
from ...datasets.driving import DrivingClip
from ...diffusion import denoising_error
from ...temporal import TemporalLayers, VideoModel, insert
from ...upsampler import (
    KINDS,
    TAU_GAMMA,
    SidewaysConv,
    Upsampler,
    UpsamplerConfig,
    degraded,
    detail,
    shrunk,
)
from ..data import FrameStore, fingerprint, rendered, to_float
from ..loop import Objective, Watch
from ..losses import LossOptions, draw_tau
from ..randomness import BatchRandom
from ..record import Record
from ..sizes import UpsamplerSize
from . import autoencoder as autoencoder_stage
from .common import STORED_AS, Job, Request, alphas_row, card

# MINI: logit-normal tau. tau_gamma up to TAU_GAMMA (noise of 0.32 in [-1, 1]), half of it below 25:
# the paper's range is not known, and what another model generates is off by far less than that
OPTIONS = LossOptions(tau=(0.0, 1.4), stratified=True)
HELD_OUT = 0.19                               # of real clips: 4 of the 20 of `signs`
FPS = 16 * driving.KEY_FPS                    # of `driving`: the end of the stack
GRID = 4                                      # patches begin on multiples of so many pixels


# --------------------------------------------------------------------------------------------------
# Data: patches of larger clips.

def large_clips(data: str, size: UpsamplerSize, split: str = "train") -> list:
    """Clips of large frames, sides divisible by 16. split: "train" or "held_out".

    Smaller videos of your own are enlarged, and have no detail to learn from. Raises ValueError for
    `actions`, whose frames are small.
    """
    if data == "driving":
        return [DrivingClip(seed, size.frames, size.pixels, FPS, start=2.0)
                for seed in driving.seeds(split, size.clips)]
    if data == "actions":
        raise ValueError("the frames of `actions` have 64 x 64 pixels, and no detail to learn "
                         "from: give --data driving, --data signs, or a folder of larger videos")
    clips = video.load(data, size=size.pixels, min_frames=size.frames)
    train, held_out = video.split(clips, HELD_OUT)
    return train if split == "train" else held_out


def patch_store(clips: list, frames: int) -> FrameStore:
    """The frames of large clips on the device, where they fit."""
    found = list(rendered(clips))
    needed = sum(clip.numel() for clip in found)
    device = machine.device()
    if needed > machine.free_memory(device) // 4:
        device = torch.device("cpu")
    return FrameStore(found, device, frames, 1, [clip.name for clip in clips])


def draw_patches(store: FrameStore, side: int, draw: BatchRandom) -> Tensor:
    """A patch of a clip for each sample -> (b frames 3 side side) in [-1, 1]; corners on a grid."""
    windows = store.windows(draw)
    height, width = store.frames.shape[1:3]
    top = GRID * draw.integers((height - side) // GRID + 1)
    left = GRID * draw.integers((width - side) // GRID + 1)
    offsets = torch.arange(side, device=draw.device)
    rows, columns = top[:, None] + offsets, left[:, None] + offsets
    index = (windows.frames[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :])
    on_store = tuple(part.to(store.frames.device) for part in index)
    return to_float(store.frames[on_store].to(draw.device))


def draw_level(draw: BatchRandom, most: int = TAU_GAMMA) -> Tensor:
    """tau_gamma (b,) long, 0 to most: the square of a uniform number, so that low is likely."""
    return (draw.uniform().square() * (most + 1)).long()


def upsampling_loss(model: nn.Module, draw_clips: Callable[[BatchRandom], Tensor],
                    coder: Autoencoder | None = None, most: int = TAU_GAMMA) -> Callable:
    """The loss of an Objective, eq. (5).

    draw_clips(draw) -> x (b t 3 h w) in [-1, 1]: single frames if t is 1. coder: diffusion in its
    latents; None: in pixels. most: the largest tau_gamma.
    """
    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        x = draw_clips(draw)
        low, tau_gamma = shrunk(x), draw_level(draw, most)
        given = degraded(model.schedule, low, tau_gamma, draw.normal(*low.shape[1:]))
        if coder is None:
            z = detail(x, given)
        else:
            with torch.no_grad():
                z = coder.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2]).float()
        if x.shape[1] == 1:
            z, given = z[:, 0], given[:, 0]
        tau = draw_tau(draw, model.schedule.num_steps, OPTIONS)

        def denoise(noisy: Tensor, tau: Tensor) -> Tensor:
            return model(noisy, tau, low=given, tau_gamma=tau_gamma)
        eps = draw.normal(*z.shape[1:])
        error = denoising_error(model.schedule, denoise, z, tau, eps, model.prediction)
        per_sample = error.square().flatten(1).mean(1)
        return per_sample.mean(), dict(tau=tau, loss=per_sample.detach())
    return loss


# --------------------------------------------------------------------------------------------------
# The parts. Each is a job of its own, with its own run.

def image_part(request: Request, kind: str = "pixel") -> Job:
    """theta on single frames. Saves out/upsampler/image (or out/latent_upsampler/image)."""
    size, name = request.dial.upsampler, f"{KINDS[kind]}/image"
    settings = request.settings(f"{KINDS[kind]}_image")
    clips = large_clips(request.data, size)
    store, coder = patch_store(clips, 1), _coder(request, kind)
    config = UpsamplerConfig(**size.widths)
    if coder:
        channels = coder.config.latent_channels
        config = replace(config, in_channels=channels, out_channels=channels, patch=1)

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        start = request.start / "image" if request.start else None
        model = Upsampler.from_pretrained(start).train() if start else Upsampler(config)
        model = model.to(machine.device())
        loss = upsampling_loss(model, lambda draw: draw_patches(store, size.patch, draw), coder)
        return [Objective("image", model, loss, muon=True)]

    def finish(built: list[Objective], record: Record) -> None:
        text = card(f"{KINDS[kind]} (theta)", request, record)
        built[0].module.save_pretrained(request.folder(name), text, STORED_AS)
    return Job(name, settings, build, finish, dict(data=fingerprint(clips)))


def temporal_part(request: Request, kind: str = "pixel") -> Job:
    """phi on clips, theta frozen. Saves out/upsampler/temporal or out/latent_upsampler/temporal."""
    size, name = request.dial.upsampler, f"{KINDS[kind]}/temporal"
    settings = request.settings(f"{KINDS[kind]}_temporal")
    clips = large_clips(request.data, size)
    store, coder = patch_store(clips, size.frames), _coder(request, kind)
    theta = Upsampler.from_pretrained(request.folder(f"{KINDS[kind]}/image"))
    theta = theta.to(machine.device()).requires_grad_(False)

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        if request.start:
            layers = TemporalLayers.from_pretrained(request.start / "temporal", theta).train()
        else:
            # MINI: convolutions over time alone; attention at a quarter of a megapixel is beyond a
            # laptop
            layers = insert(theta, conv=SidewaysConv, attention=None)
        model = VideoModel(theta, layers)
        loss = upsampling_loss(model, lambda draw: draw_patches(store, size.patch, draw), coder)
        return [Objective("temporal", layers, loss, muon=True)]

    def watch(built: list[Objective]) -> Watch:
        return Watch(row=alphas_row(built[0].module))

    def finish(built: list[Objective], record: Record) -> None:
        text = card(f"{KINDS[kind]} (phi)", request, record)
        built[0].module.save_pretrained(request.folder(name), text, STORED_AS)
    return Job(name, settings, build, finish, dict(data=fingerprint(clips)), watch)


def autoencoder_part(request: Request) -> Job:
    """The autoencoder of large frames, trained on patches.

    Saves out/latent_upsampler/autoencoder.
    """
    size, name = request.dial.upsampler, "latent_upsampler/autoencoder"
    settings = request.settings("latent_upsampler_autoencoder")
    clips = large_clips(request.data, size)
    store = patch_store(clips, 1)
    some = store.frames[::max(1, len(store.frames) // 32)][:32]

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        start = request.start / "autoencoder" if request.start else None
        if start:
            model = Autoencoder.from_pretrained(start).train()
        else:
            model = Autoencoder(size.autoencoder)
        return autoencoder_stage.objectives(
            model.to(machine.device()), lambda draw: draw_patches(store, size.patch, draw)[:, 0],
            settings.steps)

    def finish(built: list[Objective], record: Record) -> None:
        model = built[0].module
        model.config = autoencoder_stage.unit_variance(model, some)
        psnr = autoencoder_stage.reconstruction_psnr(model, some)
        text = card("latent_upsampler autoencoder", request, record,
                    {"PSNR on training frames, dB": psnr})
        model.save_pretrained(request.folder(name), text)
    return Job(name, settings, build, finish, dict(data=fingerprint(clips)))


def _coder(request: Request, kind: str) -> Autoencoder | None:
    """The frozen autoencoder of the latent upsampler; None for the pixel one."""
    if kind == "pixel":
        return None
    folder = request.folder("latent_upsampler/autoencoder")
    if not (folder / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no autoencoder in {folder}; first: python -m vldm_mini train "
                                f"latent_upsampler --data {request.data}")
    return Autoencoder.from_pretrained(folder).to(machine.device()).requires_grad_(False)
