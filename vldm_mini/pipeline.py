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
    pixels: int = 64                          # height of a frame
    width: int = 0                            # 0: as wide as high
    frames: int = 8                           # T of training
    fps: float = 8.0                          # of the generated film
    # MINI: steps, motion, its tau and eta were chosen on films of seeds 100 to 102 of `actions`, which no figure uses
    steps: int = 24                           # DDIM steps that are enough; 12 give films that shake more
    scale: float = 1.0                        # label guidance; 1: none, at half the cost
    motion: float = 2.0                       # temporal guidance; 1: none, at two thirds of the cost
    motion_above: int = 200                   # tau below which there is none: little is left to decide, much to shake
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
        height, width = (side // self.autoencoder.factor
                         for side in (self.config.pixels, self.config.width or self.config.pixels))
        shape = (frames, self.autoencoder.config.latent_channels, height, width)
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
        # above a tau alone, as Kynkaanniemi et al. 2024, arXiv 2404.07724, do with labels
        alone = by_labels(alpha == 1)
        both = alone if alpha == 1 else guided(alone, by_labels(True), motion)
        denoise = lambda z, tau: (both if int(tau[0]) > self.config.motion_above else alone)(z, tau)    # noqa: E731
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


# ---------------------------------------------------------------------------------------------------------------------
# Driving simulation (paper, section 4.1.2): boxes that a user draws, to a picture that has cars there.

BOX_CHANNELS = 4


def box_map(boxes, height, width):
    """Boxes (n, 4) x0 y0 x1 y1 in [0, 1], far ones first, as a picture (4 height width) for the image backbone.

    MINI: how the paper tells its network boxes is not known. Channels: 1 where boxes are told at all; how much of a
    place lies in a box; and, inside, how far right and how far down of the box's middle it lies, -1 to 1, by which
    boxes that touch are told apart. A near box covers a far one.
    """
    out = torch.zeros(BOX_CHANNELS, height, width)
    out[0] = 1
    at = lambda n: torch.arange(n, dtype=torch.float32)                                                 # noqa: E731
    for x0, y0, x1, y1 in torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4).tolist():
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(f"a box is x0 y0 x1 y1 with 0 <= x0 < x1 <= 1, y likewise; got {(x0, y0, x1, y1)}")
        share = lambda n, low, high: ((at(n) + 1).clamp(max=high * n) - at(n).clamp(min=low * n)).clamp(min=0)  # noqa: E731
        cover = share(height, y0, y1)[:, None] * share(width, x0, x1)
        right = (2 * ((at(width) + 0.5) / width - x0) / (x1 - x0) - 1).clamp(-1, 1).expand(height, width)
        down = (2 * ((at(height) + 0.5) / height - y0) / (y1 - y0) - 1).clamp(-1, 1)[:, None].expand(height, width)
        out[1:] += cover * (torch.stack([torch.ones_like(cover), right, down]) - out[1:])
    return out


class BoxImageLDM(VideoLDM):
    """Single frames with cars where boxes are: an image LDM of its own, as in the paper, on the same latents.

        model = BoxImageLDM.from_pretrained("driving")
        frames = model.generate(model.labels(light="day"), boxes=[[(0.55, 0.4, 0.7, 0.6)]])        # (1 1 3 64 128)
    """

    def __init__(self, autoencoder, theta, config):
        self.autoencoder, self.theta, self.config = autoencoder, theta, config
        self.schedule, self.device = Schedule.linear(), next(theta.parameters()).device

    @classmethod
    def from_pretrained(cls, name, device=None):
        """name: shipped weights ("driving"), or a folder with autoencoder, boxes and config.json."""
        folder, device = shipped(name), device or machine.device()
        return cls(Autoencoder.from_pretrained(folder / "autoencoder").to(device),
                   UNet.from_pretrained(folder / "boxes").to(device), load_config(PipelineConfig, folder / CONFIG))

    @torch.no_grad()
    def latents(self, labels, boxes=None, seed=0, steps=None, scale=2.0, noise=None, progress=None):
        """Noise to latents (b 1 c h w). labels (b, n); boxes: one list a picture, or None: not told.

        scale: guidance by boxes and labels together; 1: none, at half the cost.
        """
        if boxes is not None and len(boxes) != len(labels):
            raise ValueError(f"one list of boxes a picture: {len(boxes)} lists for {len(labels)} pictures")
        z = (self.noise(len(labels), 1, seed) if noise is None else noise)[:, 0]
        told = None if boxes is None else torch.stack([box_map(some, *z.shape[2:]) for some in boxes]).to(z.device)
        null = self.theta.null_labels(len(labels), self.device)
        denoise = guided(lambda z, tau: self.theta(z, tau, labels, told),
                         lambda z, tau: self.theta(z, tau, null), scale)
        times = ddim_times(self.config.steps if steps is None else steps)
        return ddim(self.schedule, denoise, z, times, "v", progress=progress)[:, None]
