"""Stage `autoencoder`: frames to latents and back (paper, section 2 after Rombach et al. 2022)."""
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ... import machine
from ...autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    PatchCritic,
    adaptive_weight,
    hinge_critic_loss,
    hinge_decoder_loss,
)
from ...evaluation import measures
from ..data import FrameStore, fingerprint, load_clips, rendered, to_float
from ..loop import Objective
from ..randomness import BatchRandom
from ..record import Record
from .common import Job, Request, card

KL_WEIGHT, CRITIC_WEIGHT = 2e-4, 0.1          # MINI: the paper gives neither


def prepare(request: Request) -> Job:
    """L1 + KL + patch critic, which joins half-way. Saves out/autoencoder."""
    settings = request.settings("autoencoder")
    clips, held_out = load_clips(request.data, request.dial)
    used = clips[::4] if request.data == "driving" else clips
    store = FrameStore(list(rendered(used)), machine.device(), 1)
    held_frames = torch.cat([clip.frames[::8] for clip in held_out or clips[:4]])

    def build() -> list[Objective]:
        torch.manual_seed(request.seed)
        model = (Autoencoder.from_pretrained(request.start).train() if request.start
                 else Autoencoder(request.dial.autoencoder))
        return objectives(model.to(machine.device()), store_frames(store), settings.steps)

    def finish(built: list[Objective], record: Record) -> None:
        model = built[0].module
        model.config = unit_variance(model, store.frames[::max(1, len(store.frames) // 512)])
        psnr = reconstruction_psnr(model, held_frames)
        folder = request.folder("autoencoder")
        model.save_pretrained(folder, card("autoencoder", request, record,
                                           {"PSNR on held-out frames, dB": psnr}))
    return Job("autoencoder", settings, build, finish, dict(data=fingerprint(used)))


def store_frames(store: FrameStore) -> Callable[[BatchRandom], Tensor]:
    """draw -> frames (b 3 h w) in [-1, 1] of a store of single frames."""
    return lambda draw: to_float(store.at(store.windows(draw))[:, 0])


def objectives(model: Autoencoder, draw_frames: Callable[[BatchRandom], Tensor], steps: int,
               ) -> list[Objective]:
    """An autoencoder and its critic. draw_frames(draw) -> frames (b 3 h w) in [-1, 1].

    steps: length of the run; the critic joins at half of it.
    """
    critic, last = PatchCritic().to(next(model.parameters()).device), {}

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        x = draw_frames(draw)
        posterior = model.posterior(x)
        noise = draw.normal(*posterior.mean.shape[1:])
        x_hat = model.decoder(posterior.sample(noise=noise))
        reconstruction = (x - x_hat).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total = reconstruction + KL_WEIGHT * kl
        last[draw.part] = x, x_hat.detach()
        if draw.step >= steps // 2:
            adversarial = hinge_decoder_loss(critic(x_hat).float())
            weight = adaptive_weight(reconstruction, adversarial, model.decoder.last_layer)
            total = total + CRITIC_WEIGHT * weight * adversarial
        return total, dict(reconstruction=reconstruction, kl=kl)

    def critic_loss(draw: BatchRandom) -> tuple[Tensor, dict] | None:
        if draw.step < steps // 2:
            return None
        real, fake = last[draw.part]
        return hinge_critic_loss(critic(real).float(), critic(fake).float()), {}
    return [Objective("autoencoder", model, loss, muon=True),
            Objective("critic", critic, critic_loss, lr_scale=0.5)]


@torch.no_grad()
def unit_variance(model: Autoencoder, frames: Tensor) -> AutoencoderConfig:
    """The config whose shift and scale give latents of mean 0 and variance 1.

    frames uint8 (n h w 3): what the latents are of.
    """
    device = next(model.parameters()).device
    parts = [model.posterior(to_float(part.to(device))).mean for part in frames.split(32)]
    z = torch.cat(parts)
    return replace(model.config, shift=float(z.mean()), scale=float(1 / z.std()))


@torch.no_grad()
def reconstruction_psnr(model: Autoencoder, frames: Tensor) -> float:
    """Mean over frames uint8 (n h w 3) of the PSNR in dB, range 2 for values in [-1, 1]."""
    device = next(model.parameters()).device
    found = []
    for part in frames.split(32):
        x = to_float(part.to(device))
        found.append(measures.psnr(model.decode(model.encode(x)).clamp(-1, 1), x))
    return round(float(torch.cat(found).mean()), 2)
