"""Stages `prediction` and `interpolation`: phi with context frames, eq. (3), theta frozen.

Paper: sections 3.2 and 3.3. Chapters 06 and 07 walk through them.
"""
from collections.abc import Callable
from pathlib import Path

import torch

from ... import machine
from ...datasets import driving
from ...datasets.driving import DrivingClip
from ...temporal import TemporalLayers, VideoModel, extend
from ...unet import UNet
from ..data import Latents, cached_latents
from ..loop import Objective, Watch
from ..losses import (
    ContextMaker,
    ContextOptions,
    LossOptions,
    diffusion_loss,
    interpolation_context,
    prediction_context,
)
from ..record import Record
from .common import STORED_AS, Job, Request, alphas_row, card, image_backbone, latents_of

# MINI: where frames are given, how the clip continues is decided at high noise
TAU = (0.4, 1.4)
PREDICTION_OPTIONS = LossOptions(tau=TAU, stratified=True, temporal_difference=8.0)
PREDICTION_CONTEXT = ContextOptions(self_generated=0.5)
# MINI: linear interpolation of the ends is off by 0.18 at the first regime's rate and by 0.04 at
# the second's (latents of variance 1): what is left to learn there is small. So it weighs four
# times more
INTERPOLATION_OPTIONS = LossOptions(tau=TAU, stratified=True, temporal_difference=8.0,
                                    anchored=True, regime_weights=(0.4, 1.6))
INTERPOLATION_CONTEXT = ContextOptions()
INTERPOLATION_FPS = 4 * driving.KEY_FPS, 16 * driving.KEY_FPS       # of T to 4T and of 4T to 16T
INTERPOLATION_FRAMES = 5


def prediction(request: Request) -> Job:
    """phi that is also conditioned on 0, 1 or 2 first frames. Starts from out/temporal.

    MINI: with S = 0 it generates key frames as before: one phi for sections 3.1 and 3.2.
    """
    latents, dial = latents_of(request)[0], request.dial

    def make_context(model: VideoModel, theta: UNet) -> ContextMaker:
        return prediction_context(model, theta.schedule, theta.prediction, PREDICTION_CONTEXT)
    start = request.start or request.folder("temporal")
    return _context_job("prediction", request, latents, (dial.frames, dial.stride),
                        PREDICTION_OPTIONS, make_context, start)


def interpolation(request: Request) -> Job:
    """phi that is conditioned on both ends of five frames. Starts from out/prediction.

    One phi for both regimes, T to 4T and 4T to 16T. Only `driving` has clips at any frame rate.
    Raises ValueError for other data.
    """
    if request.data != "driving":
        raise ValueError(f"interpolation learns from frames at 7.5 and 30 a second; {request.data} "
                         "has none: --data driving")
    latents = cached_latents("driving", request.out, interpolation_clips(request))

    def make_context(model: VideoModel, theta: UNet) -> ContextMaker:
        return interpolation_context(theta.schedule, INTERPOLATION_CONTEXT)
    start = request.start or request.folder("prediction")
    return _context_job("interpolation", request, latents, (INTERPOLATION_FRAMES, 1),
                        INTERPOLATION_OPTIONS, make_context, start, regimes=2)


def interpolation_clips(request: Request) -> list[DrivingClip]:
    """Five frames of each scene, at 7.5 and at 30 a second in turn: a clip's parity is its regime.
    """
    dial = request.dial
    return [DrivingClip(seed, INTERPOLATION_FRAMES, dial.pixels, fps, start=3 * (seed % 3))
            for seed in driving.seeds("train", dial.clips) for fps in INTERPOLATION_FPS]


def _context_job(stage: str, request: Request, latents: Latents, window: tuple[int, int],
                 options: LossOptions, make_context: Callable[[VideoModel, UNet], ContextMaker],
                 start: Path | str, **more: int) -> Job:
    """Temporal layers from `start`, with input channels for c_S, trained with theta frozen."""
    theta = image_backbone(request)
    more |= dict(context_channels=theta.config.in_channels + 1)

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        layers = TemporalLayers.from_pretrained(start, theta)
        if any(name not in layers.settings["options"] for name in more):
            layers = extend(layers, theta, **more)
        model = VideoModel(theta, layers.to(machine.device()).train())
        loss = diffusion_loss(model, latents, *window, theta.schedule, theta.prediction, options,
                              make_context(model, theta))
        return [Objective(stage, layers, loss, muon=True)]

    def watch(built: list[Objective]) -> Watch:
        return Watch(row=alphas_row(built[0].module))

    def finish(built: list[Objective], record: Record) -> None:
        text = card(f"{stage} layers (phi)", request, record)
        built[0].module.save_pretrained(request.folder(stage), text, STORED_AS)
    fresh = build()[0].module
    identity = dict(data=latents.fingerprint, layers=fresh.source_hash())
    fresh.remove()
    return Job(stage, request.settings(stage), build, finish, identity, watch)
