"""From weights to films: the image model, its temporal layers and the autoencoder as one object (paper, Fig. 5).

    model = VideoLDM.from_pretrained("actions")
    film = model.generate(model.labels(action="bend", person=2), frames=8, seed=0)       # (1 8 3 64 64) in [-1, 1]
    frames = model.generate(..., alpha=1)                                                # the image model, same noise

Chapters 00 and 04 walk it. Key frames only, so far: no prediction, no interpolation, no upsampling.
"""
from dataclasses import dataclass

import torch
from einops import rearrange

from . import machine
from .autoencoder import Autoencoder
from .diffusion import Schedule, ddim, ddim_times, guided
from .temporal import TemporalLayers, VideoModel
from .training import rng
from .unet import UNet
from .weights import CONFIG, load_config, shipped


@dataclass(frozen=True)
class PipelineConfig:
    """What the weights alone do not say. `words`: for each label its name and what its classes mean."""
    words: tuple = ()                         # (("action", ("bend", ...)), ...)
    pixels: int = 64
    frames: int = 8                           # T of training
    fps: float = 8.0                          # of the generated film
    # MINI: steps, motion and eta were chosen on films of seeds 100 to 102 of `actions`, which no figure uses
    steps: int = 12                           # DDIM steps that are enough
    scale: float = 1.0                        # label guidance; 1: none, at half the cost
    motion: float = 2.0                       # temporal guidance; 1: none, at two thirds of the cost
    eta: float = 1.0                          # new noise at each step: 0 none, 1 as much as DDPM


class VideoLDM:
    """Autoencoder, image backbone theta and temporal layers phi. `generate` makes films, (b t 3 h w) in [-1, 1]."""

    def __init__(self, autoencoder, theta, layers, config):
        self.autoencoder, self.theta, self.layers, self.config = autoencoder, theta, layers, config
        self.model, self.schedule = VideoModel(theta, layers), Schedule.linear()
        self.device = next(theta.parameters()).device

    @classmethod
    def from_pretrained(cls, name, device=None):
        """name: shipped weights ("actions"), or a folder with autoencoder, image, temporal and config.json."""
        folder, device = shipped(name), device or machine.device()
        config = load_config(PipelineConfig, folder / CONFIG)
        autoencoder = Autoencoder.from_pretrained(folder / "autoencoder").to(device)
        theta = UNet.from_pretrained(folder / "image").to(device)
        layers = TemporalLayers.from_pretrained(folder / "temporal", theta).to(device)
        return cls(autoencoder, theta, layers, config)

    def labels(self, **asked):
        """Words or numbers -> labels (1, n): labels(action="bend", person=2). What is not asked is the null label."""
        known = dict(self.config.words)
        for name in asked.keys() - known.keys():
            raise ValueError(f"unknown label {name!r}; this model knows {', '.join(known) or 'none'}")
        ids = []
        for name, classes in known.items():
            value = asked.get(name, len(classes))
            if isinstance(value, str) and value not in classes:
                raise ValueError(f"unknown {name} {value!r}; choose from: {', '.join(map(str, classes))}")
            value = list(classes).index(value) if isinstance(value, str) else int(value)
            if not 0 <= value <= len(classes):
                raise ValueError(f"{name} must lie in 0..{len(classes) - 1}, got {value}")
            ids.append(value)
        return torch.tensor([ids], device=self.device)

    def noise(self, n, frames, seed=0):
        """Starting noise (n t c h w): clip i's depends on (seed, i) alone, not on how many clips are made."""
        side = self.config.pixels // self.autoencoder.factor
        shape = (frames, self.autoencoder.config.latent_channels, side, side)
        return torch.stack([torch.randn(shape, generator=rng(seed, 0, i)) for i in range(n)]).to(self.device)

    @torch.no_grad()
    def latents(self, labels, frames=None, alpha=None, seed=0, steps=None, scale=None, noise=None, progress=None,
                motion=None, eta=None):
        """Noise to latents (b t c h w). labels (b, n); alpha None: as learned, 1: the image model, else fixed.

        scale: guidance by the labels. motion: by the temporal layers, 1 for none; at alpha = 1 none is possible.
        noise: where to start, in place of what `seed` gives; seed decides the noise of later steps (eta) all the same.
        """
        frames = self.config.frames if frames is None else frames
        if frames < 1:
            raise ValueError(f"a film has at least one frame, got {frames}")
        z = self.noise(len(labels), frames, seed) if noise is None else noise
        scale = self.config.scale if scale is None else scale
        motion = self.config.motion if motion is None else motion
        eta = self.config.eta if eta is None else eta
        self.layers.set_alpha(alpha)

        def ask(labels, image):
            return lambda z, tau: self.model(z, tau, labels=labels, image=image)

        def by_labels(image):
            null = self.theta.null_labels(len(labels), self.device)
            return guided(ask(labels, image), ask(null, image), scale)

        # MINI: y = f_image + w (f_video - f_image): a model guided by a worse one of itself (Karras et al. 2024,
        # arXiv 2406.02507), the image model. What temporal layers add is exaggerated; the paper does not do it
        denoise = by_labels(True) if alpha == 1 else guided(by_labels(False), by_labels(True), motion)
        try:
            times = ddim_times(self.config.steps if steps is None else steps)
            again = [rng(seed, 1, i) for i in range(len(z))]
            return ddim(self.schedule, denoise, z, times, "v", eta, again, progress=progress)
        finally:
            self.layers.set_alpha(None)

    @torch.no_grad()
    def decode(self, z):
        """Latents (b t c h w) -> films (b t 3 h w) in [-1, 1], some frames at a time."""
        flat = rearrange(z, "b t c h w -> (b t) c h w")
        x = torch.cat([self.autoencoder.decode(part) for part in flat.split(32)])
        return rearrange(x.clamp(-1, 1), "(b t) c h w -> b t c h w", t=z.shape[1])

    def generate(self, labels, **how):
        """Films (b t 3 h w) in [-1, 1] for labels (b, n); the arguments of `latents`."""
        return self.decode(self.latents(labels, **how))
