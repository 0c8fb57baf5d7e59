"""Stage `boxes`: an image LDM conditioned on car boxes (paper, section 4.1.2). Chapter 09."""
import torch

from ... import machine
from ...boxes import BOX_CHANNELS
from ...unet import UNet, add_input_channels
from ..loop import Objective
from ..losses import box_condition, diffusion_loss
from ..record import Record
from .common import STORED_AS, Job, Request, card, image_backbone, latents_of
from .image import OPTIONS


def prepare(request: Request) -> Job:
    """theta with input channels for a box map. Starts from out/image. Saves out/boxes."""
    if request.data != "driving":
        raise ValueError(f"only `driving` knows where its cars are, not {request.data}: "
                         "--data driving")
    settings = request.settings("boxes")
    latents = latents_of(request)[0]
    maps = latents.box_maps().to(machine.device())
    image_backbone(request)                                  # raises where there is none

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        if request.start:
            model = UNet.from_pretrained(request.start)
        else:
            model = add_input_channels(UNet.from_pretrained(request.folder("image")), BOX_CHANNELS)
        model = model.requires_grad_(True).train().to(machine.device())
        loss = diffusion_loss(model, latents, 1, 1, model.schedule, model.prediction, OPTIONS,
                              box_condition(maps, OPTIONS.label_drop))
        return [Objective("boxes", model, loss, muon=True)]

    def finish(built: list[Objective], record: Record) -> None:
        text = card("boxes to image LDM", request, record)
        built[0].module.save_pretrained(request.folder("boxes"), text, STORED_AS)
    return Job("boxes", settings, build, finish, dict(data=latents.fingerprint))
