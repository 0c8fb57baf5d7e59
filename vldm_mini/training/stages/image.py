"""Stage `image`: the image LDM theta on single frames, eq. (1). Chapter 03 walks through it."""
from dataclasses import replace

import torch

from ... import machine
from ...unet import UNet
from ..loop import Objective, Watch
from ..losses import LossOptions, diffusion_loss
from ..record import Record
from .common import STORED_AS, Job, Request, card, held_out_error, latents_of, noise_strip

# MINI: person, position and pose of a frame are decided at middle noise levels
OPTIONS = LossOptions(tau=(0.5, 1.0), stratified=True)


def prepare(request: Request) -> Job:
    """theta from random weights (or request.start). Saves out/image."""
    settings = request.settings("image")
    latents, held_out = latents_of(request)
    channels = request.dial.autoencoder.latent_channels
    config = replace(request.dial.unet, labels=latents.classes, in_channels=channels,
                     out_channels=channels)

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        model = UNet.from_pretrained(request.start).train() if request.start else UNet(config)
        model = model.to(machine.device())
        loss = diffusion_loss(model, latents, 1, 1, model.schedule, model.prediction, OPTIONS)
        return [Objective("image", model, loss, muon=True)]

    def watch(built: list[Objective]) -> Watch:
        model = built[0].module
        return Watch(strip=noise_strip(model, latents, request.out, 1),
                     validate=held_out_error(model, held_out, 1, 1))

    def finish(built: list[Objective], record: Record) -> None:
        text = card("image LDM (theta)", request, record)
        built[0].module.save_pretrained(request.folder("image"), text, STORED_AS)
    return Job("image", settings, build, finish, dict(data=latents.fingerprint), watch)
