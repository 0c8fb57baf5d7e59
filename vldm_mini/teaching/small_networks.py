"""Small networks that chapters 02 to 04 compare, and the loops of plain code that train them.

    python -m vldm_mini.teaching.small_networks              # all of them, about half an hour
    python -m vldm_mini.teaching.small_networks memory-8     # one

Paper: section 2, eq. (1). Each network is trained for minutes on one CPU core, on small driving
frames. The results lie in data/teaching, one folder a network: weights, config and record.json.
Networks that a chapter compares differ in one setting; data, batches, noise and steps are the same.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import diffusion
from ..autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    PatchCritic,
    adaptive_weight,
    hinge_critic_loss,
    hinge_decoder_loss,
)
from ..datasets import driving, video
from ..diffusion import Denoiser, Schedule
from ..temporal import TemporalLayers, VideoModel, insert
from ..unet import UNet, UNetConfig
from ..weights import read_json, write_text

FOLDER = Path(__file__).resolve().parents[2] / "data" / "teaching"
LEVELS = 10  # bins of tau in which a loss is averaged


def frames(split: str, scenes: int, each: int = 1, height: int = 32) -> Tensor:
    """Rendered key frames (each * scenes, 3, height, 2 height) in [-1, 1].

    The first `scenes` frames are of as many different scenes; then come their second frames.
    """
    clips = driving.clips(split, scenes, each, height)
    x = torch.stack([video.to_float(clip.frames) for clip in clips], dim=1)  # each scenes c h w
    return x.flatten(0, 1)


# --------------------------------------------------------------------------------------------------
# The two loops.


def fit_denoiser(
    net: UNet, x: Tensor, steps: int, batch: int = 16, lr: float = 2e-3, seed: int = 0
) -> list[float]:
    """Train net by eq. (1) on x (n c h w), in place. -> the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(steps):
        set_rate(optimiser, lr, step, steps)
        clean = x[torch.randint(len(x), (batch,), generator=generator)]
        tau = torch.randint(net.schedule.num_steps, (batch,), generator=generator)
        eps = torch.randn(clean.shape, generator=generator)
        loss = diffusion.denoising_loss(net.schedule, net, clean, tau, eps).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    net.eval()
    return losses


def fit_video(
    model: VideoModel, z: Tensor, steps: int, batch: int = 8, lr: float = 3e-3, seed: int = 0
) -> list[float]:
    """Train the temporal layers of model by eq. (2) on clips z (n t c h w), in place.

    -> the loss of each step. The image model stays as it is.
    """
    theta, generator = model.backbone.requires_grad_(False), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.layers.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(steps):
        set_rate(optimiser, lr, step, steps)
        clean = z[torch.randint(len(z), (batch,), generator=generator)]            # b t c h w
        tau = torch.randint(theta.schedule.num_steps, (batch,), generator=generator)
        eps = torch.randn(clean.shape, generator=generator)
        error = diffusion.denoising_error(theta.schedule, model, clean, tau, eps, theta.prediction)
        loss = error.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def fit_autoencoder(
    model: Autoencoder,
    x: Tensor,
    steps: int,
    kl_weight: float = 2e-4,
    critic_weight: float = 0.0,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train model on frames x (n 3 h w), in place: L1 + KL, and a critic in the second half.

    The latents end with mean 0 and variance 1. -> "reconstruction" and "kl" (nats per number of the
    latent) of each step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    critic = PatchCritic(16)
    critic_optimiser = torch.optim.AdamW(critic.parameters(), lr / 2, betas=(0.5, 0.9))
    rows = []
    for step in range(steps):
        set_rate(optimiser, lr, step, steps)
        real = x[torch.randint(len(x), (batch,), generator=generator)]
        posterior = model.posterior(real)
        decoded = model.decoder(posterior.sample(generator))
        reconstruction = (decoded - real).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction + kl_weight * kl
        if critic_weight and step >= steps // 2:
            adversarial = hinge_decoder_loss(critic(decoded))
            weight = adaptive_weight(reconstruction, adversarial, model.decoder.last_layer)
            loss = loss + critic_weight * weight * adversarial
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if critic_weight and step >= steps // 2:
            critic_optimiser.zero_grad()
            hinge_critic_loss(critic(real), critic(decoded.detach())).backward()
            critic_optimiser.step()
        rows.append({"reconstruction": reconstruction.item(), "kl": kl.item()})
    with torch.no_grad():
        z = torch.cat([model.posterior(part).mean for part in x[:512].split(64)])
    model.config = replace(model.config, shift=float(z.mean()), scale=float(1 / z.std()))
    model.eval()
    return rows


def set_rate(optimiser: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """50 steps of linear warm-up to lr, then a cosine down to zero."""
    rate = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimiser.param_groups:
        group["lr"] = rate


@torch.no_grad()
def loss_by_level(schedule: Schedule, denoise: Denoiser, x: Tensor, repeats: int = 1,
                  seed: int = 0) -> Tensor:
    """Mean loss of eq. (1) in each of LEVELS bins of tau: x (n c h w) -> (LEVELS,).

    The noise depends on seed, n and repeats alone: the same for every denoiser.
    """
    generator, found = torch.Generator().manual_seed(seed), []
    for level in range(LEVELS):
        tau = torch.randint(100, (repeats, len(x)), generator=generator) + 100 * level
        total = 0.0
        for times in tau:
            eps = torch.randn(x.shape, generator=generator)
            total += diffusion.denoising_loss(schedule, denoise, x, times, eps).mean().item()
        found.append(total / repeats)
    return torch.tensor(found)


def nearest(x: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of bank (m c h w) for each of x (n c h w): RMS difference (n,), number (n,)."""
    distance = torch.cdist(x.flatten(1), bank.flatten(1)) / math.sqrt(x[0].numel())
    return distance.min(dim=1)


# --------------------------------------------------------------------------------------------------
# The networks.


@dataclass(frozen=True)
class Memory:
    """Chapter 02: a U-Net on the first n of 1,000 frames of 16x32."""

    n: int
    steps: int = 3000
    config: UNetConfig = UNetConfig(3, 3, (16, 24, 24), (False, False, True), emb_channels=48)

    def train(self) -> tuple[UNet, list]:
        """-> the network and the loss of each step."""
        torch.manual_seed(0)
        net = UNet(self.config)
        return net, fit_denoiser(net, memory_frames()[: self.n], self.steps)


def memory_frames(n: int = 1000) -> Tensor:
    """The training frames of Memory, (n 3 16 32): of the first 250 scenes, up to four each."""
    return frames("train", min(n, 250), max(1, n // 250), height=16)


@dataclass(frozen=True)
class Code:
    """Chapter 03: an autoencoder on frames of 32x64."""

    channels: tuple[int, ...]
    kl_weight: float = 2e-4
    critic_weight: float = 0.0
    steps: int = 1500

    def train(self) -> tuple[Autoencoder, list]:
        """-> the autoencoder and the losses of each step."""
        torch.manual_seed(0)
        model = Autoencoder(AutoencoderConfig(self.channels))
        x = frames("train", 400, 4)
        return model, fit_autoencoder(model, x, self.steps, self.kl_weight, self.critic_weight)


@dataclass(frozen=True)
class Image:
    """Chapter 03: a U-Net on pixels of 32x64, or on latents of the autoencoder `of`."""

    steps: int
    batch: int
    of: str = ""

    def train(self) -> tuple[UNet, list]:
        """-> the network and the loss of each step."""
        x = frames("train", 400, 4)
        if self.of:
            with torch.no_grad():
                x = load(self.of).encode(x)
        torch.manual_seed(0)
        net = UNet(UNetConfig(x.shape[1], x.shape[1], (16, 24, 24), (False, False, True),
                              emb_channels=48))
        return net, fit_denoiser(net, x, self.steps, self.batch)


@dataclass(frozen=True)
class Temporal:
    """Chapter 04: the paper's temporal layers in the image model `of`, on clips of 8 frames."""

    of: str = "latents"
    steps: int = 1500
    clips: int = 600

    def train(self) -> tuple[TemporalLayers, list]:
        """-> the temporal layers and the loss of each step."""
        theta = load(self.of)
        torch.manual_seed(0)
        layers = insert(theta, ff_in=False, ff_mult=2)
        z = clip_latents("train", self.clips)
        return layers, fit_video(VideoModel(theta, layers), z, self.steps)


def clip_latents(split: str, n: int, frames: int = 8, fps: float = 7.5) -> Tensor:
    """Latents (n t c h w) of n driving clips of 32x64 at 7.5 frames a second, by the network f4."""
    model, found = load("f4"), []
    for seed in driving.seeds(split, n):
        clip = driving.DrivingClip(seed, frames, 32, fps)
        with torch.no_grad():
            found.append(model.encode(video.to_float(clip.frames)))
    return torch.stack(found)


def video_model(name: str = "temporal") -> VideoModel:
    """A stored network of kind Temporal with its image model, in evaluation mode."""
    theta = load(NETWORKS[name].of).requires_grad_(False)
    return VideoModel(theta, TemporalLayers.from_pretrained(FOLDER / name, theta)).eval()


F2, F4, F8 = (24,), (24, 32), (24, 32, 32)
NETWORKS = {
    "memory-8": Memory(8), "memory-64": Memory(64), "memory-1000": Memory(1000),
    "f2": Code(F2), "f4": Code(F4), "f8": Code(F8),
    "f4-kl-none": Code(F4, 0.0), "f4-kl-strong": Code(F4, 0.02), "f4-kl-too-strong": Code(F4, 0.2),
    "f8-critic": Code(F8, critic_weight=0.1),
    "pixels": Image(1500, 16), "latents": Image(3900, 64, "f4"),
    "temporal": Temporal(),
}


def load(name: str) -> UNet | Autoencoder:
    """A stored image network of NETWORKS, in evaluation mode. Raises FileNotFoundError."""
    kind = Autoencoder if isinstance(NETWORKS[name], Code) else UNet
    return kind.from_pretrained(FOLDER / name)


def record(name: str) -> dict:
    """The record of a stored network: settings, seconds and losses, averaged over 20 steps each."""
    return read_json(FOLDER / name / "record.json")


def save(name: str) -> None:
    """Train one network of NETWORKS and store it with its record."""
    import time

    start = time.process_time()
    net, rows = NETWORKS[name].train()
    seconds = round(time.process_time() - start)
    net.save_pretrained(FOLDER / name, dtype=torch.int8)
    steps = list(range(20, len(rows) + 1, 20))
    if isinstance(rows[0], dict):
        means = {key: [sum(row[key] for row in rows[k - 20 : k]) / 20 for k in steps]
                 for key in rows[0]}
    else:
        means = {"loss": [sum(rows[k - 20 : k]) / 20 for k in steps]}
    means = {key: [round(value, 5) for value in values] for key, values in means.items()}
    settings = {key: value for key, value in vars(NETWORKS[name]).items() if key != "config"}
    text = json.dumps({"settings": settings, "processor_seconds": seconds, "step": steps, **means})
    write_text(FOLDER / name / "record.json", text + "\n")
    last = {key: values[-1] for key, values in means.items()}
    print(f"{name}: {seconds} s of processor time, at the end {last}", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NETWORKS:
        save(chosen)
