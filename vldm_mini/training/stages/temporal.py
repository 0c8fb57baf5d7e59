"""Stage `temporal`: temporal layers phi on clips, eq. (2), theta frozen.

Chapter 04 walks through it.
"""
import json
from dataclasses import asdict
from typing import Any

import torch

from ... import weights
from ...pipeline import PipelineConfig
from ...temporal import TemporalLayers, VideoModel, insert
from ..data import Latents
from ..loop import Objective, Watch
from ..losses import LossOptions, diffusion_loss
from ..record import Record
from .common import (
    STORED_AS,
    Job,
    Request,
    alphas_row,
    card,
    held_out_error,
    image_backbone,
    latents_of,
    noise_strip,
)

# MINI: a clip needs low tau too: an error there that each frame makes for itself flickers. The
# weight lets the mean over 4x4 squares count as much as all details together (8 x 2 / 16 of white
# error)
OPTIONS = LossOptions(tau=(-0.8, 1.5), stratified=True, temporal_difference=8.0)

# MINI: how these weights are sampled, chosen on clips that no figure uses: noise at every step, and
# guidance by the image model above tau = 200
SAMPLING = dict(eta=1.0, temporal_guidance=2.0, temporal_guidance_above=200,
                guide_labels_with_context=True, context_order=2, context_power=1.5, anchored=True)


def prepare(request: Request, **layers_options: Any) -> Job:
    """phi into the frozen theta. Saves out/temporal and the pipeline's config.

    layers_options: conv=, attention=, ... of temporal.insert, for layers of one's own.
    """
    settings, dial = request.settings("temporal"), request.dial
    latents, held_out = latents_of(request)
    theta = image_backbone(request)

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        if request.start:
            layers = TemporalLayers.from_pretrained(request.start, theta).train()
        else:
            layers = insert(theta, **dial.temporal | layers_options)
        model = VideoModel(theta, layers)
        loss = diffusion_loss(model, latents, dial.frames, dial.stride, theta.schedule,
                              theta.prediction, OPTIONS)
        return [Objective("temporal", layers, loss, muon=True)]

    def watch(built: list[Objective]) -> Watch:
        model = VideoModel(theta, built[0].module)
        validate = held_out_error(model, held_out, dial.frames, dial.stride, clips=12)
        return Watch(row=alphas_row(built[0].module), validate=validate,
                     strip=noise_strip(model, latents, request.out, dial.frames))

    def finish(built: list[Objective], record: Record) -> None:
        text = card("temporal layers (phi)", request, record)
        built[0].module.save_pretrained(request.folder("temporal"), text, STORED_AS)
        save_pipeline_config(request, latents)
    fresh = build()[0].module
    identity = dict(data=latents.fingerprint, layers=fresh.source_hash())
    fresh.remove()
    return Job("temporal", settings, build, finish, identity, watch)


def save_pipeline_config(request: Request, latents: Latents) -> None:
    """out/config.json: what the weights alone do not say."""
    dial = request.dial
    width = dial.width if dial.width != dial.pixels else 0
    config = PipelineConfig(label_names=latents.label_names, pixels=dial.pixels, width=width,
                            frames=dial.frames, fps=round(latents.fps / dial.stride, 3), **SAMPLING)
    weights.write_text(request.out / weights.CONFIG, json.dumps(asdict(config), indent=1) + "\n")
