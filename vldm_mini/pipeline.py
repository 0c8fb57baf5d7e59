"""From weights to films: the image model, its temporal layers and the autoencoder as one object (paper, Fig. 5).

    model = VideoLDM.from_pretrained("actions")
    film = model.generate(model.labels(action="bend", person=2), frames=8, seed=0)       # (1 8 3 64 64) in [-1, 1]
    frames = model.generate(..., alpha=1)                                                # the image model, same noise

    for part in model.rollout(labels, frames=500): ...                                    # section 3.2, without end
    film = model.smooth_video(labels)                                                             # 8 key frames to 113 frames
    large = model.smooth_video(labels, kind="pixel")                                              # and four times as high

Chapters 00, 04, 06, 07 and 08 walk it.
"""
from dataclasses import dataclass

import torch
from einops import rearrange

from . import machine
from .autoencoder import Autoencoder, VideoDecoder
from .context import anchored, context, context_mask, prediction_windows
from .diffusion import Schedule, chained_guidance, ddim, ddim_times, guided, rng
from .temporal import TemporalLayers, VideoModel, band
from .unet import UNet
from .upsampler import VideoUpsampler
from .weights import CONFIG, load_config, shipped


@dataclass(frozen=True)
class PipelineConfig:
    """What the weights alone do not say. `label_names`: for each label its name and what its classes mean."""
    label_names: tuple = ()                         # (("action", ("bend", ...)), ...)
    pixels: int = 64                          # height of a frame
    width: int = 0                            # 0: as wide as high
    frames: int = 8                           # T of training
    fps: float = 8.0                          # of the generated film
    steps: int = 24                           # DDIM steps
    label_guidance: float = 1.0               # 1: none, at half the cost
    context_guidance: float = 1.5             # s of eq. (4); 1: none. The paper names no scale
    eta: float = 0.0                          # new noise at each step: 0 none (DDIM), 1 as much as DDPM
    # MINI: guidance by the image model, which the paper does not have (see `latents`)
    temporal_guidance: float = 1.0            # 1: none, at two thirds of the cost
    temporal_guidance_above: int = 0          # tau up to which there is none


# MINI: of steps that follow one another without new noise, more are spent where little of it is left (ddim_times): of a
# Gaussian, whose answer is known, ten such steps of second order miss by less than forty even ones of first order
POWER = 1.5
# the stages that a folder of weights may hold beside the first three
CONTEXT_STAGES = ("prediction", "interpolation")


class VideoLDM:
    """Autoencoder, image backbone theta and temporal layers phi. `generate` makes films, (b t 3 h w) in [-1, 1].

    context_models: {"prediction" or "interpolation": temporal layers of their own on the same theta}; decoder: temporal layers of
    the decoder. Each stage can be called alone.
    """

    def __init__(self, autoencoder, theta, layers, config, context_models=None, decoder=None, folder=None):
        self.autoencoder, self.theta, self.layers, self.config = autoencoder, theta, layers, config
        self.model, self.schedule = VideoModel(theta, layers), Schedule.linear()
        self.context_models = {stage: VideoModel(theta, phi) for stage, phi in (context_models or {}).items()}
        self.decoder, self.folder = VideoDecoder(autoencoder, decoder), folder
        self.device = next(theta.parameters()).device

    @classmethod
    def from_pretrained(cls, name, device=None):
        """name: shipped weights ("actions"), or a folder with autoencoder, image, temporal and config.json.

        prediction, interpolation and decoder are taken along where they are there.
        """
        folder, device = shipped(name), device or machine.device()
        config = load_config(PipelineConfig, folder / CONFIG)
        autoencoder = Autoencoder.from_pretrained(folder / "autoencoder").to(device)
        theta = UNet.from_pretrained(folder / "image").to(device)
        layers = TemporalLayers.from_pretrained(folder / "temporal", theta).to(device)
        context_models = {stage: TemporalLayers.from_pretrained(folder / stage, theta).to(device)
                for stage in CONTEXT_STAGES if (folder / stage).is_dir()}
        decoder = TemporalLayers.from_pretrained(folder / "decoder", autoencoder.decoder).to(device) \
            if (folder / "decoder").is_dir() else None
        return cls(autoencoder, theta, layers, config, context_models, decoder, folder)

    def labels(self, **asked):
        """Words or numbers -> labels (1, n): labels(action="bend", person=2). What is not asked is the null label."""
        known = dict(self.config.label_names)
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

    def noise(self, n, frames, seed=0, size=None):
        """Starting noise (n t c h w): clip i's depends on (seed, i) alone, not on how many clips are made."""
        size = size or (self.config.pixels, self.config.width or self.config.pixels)
        least = self.autoencoder.factor * 2 ** (len(self.theta.config.channels) - 1)
        if any(side < least or side % least for side in size):
            raise ValueError(f"height and width must be multiples of {least} pixels, got {tuple(size)}")
        height, width = (side // self.autoencoder.factor for side in size)
        shape = (frames, self.autoencoder.config.latent_channels, height, width)
        return torch.stack([torch.randn(shape, generator=rng(seed, 0, i)) for i in range(n)]).to(self.device)

    @torch.no_grad()
    def latents(self, labels, frames=None, alpha=None, seed=0, steps=None, label_guidance=None, noise=None,
                progress=None, temporal_guidance=None, eta=None, size=None):
        """Noise to latents (b t c h w). labels (b, n); alpha None: as learned, 1: the image model, else fixed.

        frames, size (height and width in pixels): None: as trained. All networks are convolutional in space; in time,
        with more frames than trained, each looks at those no further off than in training (paper, appendix D).
        label_guidance: by the labels. temporal_guidance: by the temporal layers, 1 for none; at alpha = 1 none is possible.
        noise: where to start, in place of what `seed` gives; seed decides the noise of later steps (eta) all the same.
        """
        frames = self.config.frames if frames is None else frames
        if frames < 1:
            raise ValueError(f"a film has at least one frame, got {frames}")
        z = self.noise(len(labels), frames, seed, size) if noise is None else noise
        mask = band(z.shape[1], self.config.frames - 1).to(self.device) if z.shape[1] > self.config.frames else None
        label_guidance = self.config.label_guidance if label_guidance is None else label_guidance
        temporal_guidance = self.config.temporal_guidance if temporal_guidance is None else temporal_guidance
        eta = self.config.eta if eta is None else eta
        self.layers.set_alpha(alpha)

        def ask(labels, image):
            return lambda z, tau: self.model(z, tau, labels=labels, image=image, mask=mask)

        def by_labels(image):
            null = self.theta.null_labels(len(labels), self.device)
            return guided(ask(labels, image), ask(null, image), label_guidance)

        # MINI: y = f_image + w (f_video - f_image): a model guided by a worse one of itself (Karras et al. 2024,
        # arXiv 2406.02507), the image model. What temporal layers add is exaggerated; the paper does not do it
        # above a tau alone, as Kynkaanniemi et al. 2024, arXiv 2404.07724, do with labels
        alone = by_labels(alpha == 1)
        both = alone if alpha == 1 else guided(alone, by_labels(True), temporal_guidance)
        denoise = lambda z, tau: (both if int(tau[0]) > self.config.temporal_guidance_above else alone)(z, tau)    # noqa: E731
        try:
            times = ddim_times(self.config.steps if steps is None else steps)
            again = [rng(seed, 1, i) for i in range(len(z))]
            return ddim(self.schedule, denoise, z, times, "v", eta, again, progress=progress)
        finally:
            self.layers.set_alpha(None)

    def stage(self, name):
        """The video model of "prediction" or "interpolation". Raises ValueError where the weights hold none."""
        if name not in self.context_models:
            raise ValueError(f"these weights hold no {name}; train it: python -m vldm_mini train {name}, "
                             "or use weights that have it")
        return self.context_models[name]

    @torch.no_grad()
    def sample_with_context(self, stage, labels, known, mask, noise, generators, regime=None, context_guidance=1.0,
                            label_guidance=1.0, augment=0, steps=None, eta=0.0):
        """One window of a stage that is told frames: noise (b t c h w) -> latents like it.

        known (b t c h w): clean latents where mask (b t) is 1. context_guidance: s of eq. (4), by what is given;
        label_guidance: by the labels; where the two are equal it is one walk, from told nothing to told all. augment: tau of the noise that is
        put on what is given (and told). What prediction answers at given frames is its own, nothing pasted;
        interpolation is anchored there. MINI: no new noise on the way (eta = 0), since with it films move less and blur,
        and second order, since first order in as few steps blurs as well.
        """
        model = self.stage(stage)
        keep = self.schedule.alpha_tau[augment].expand(len(known)).to(known) if augment else None
        eps = torch.stack([torch.randn(known.shape[1:], generator=g) for g in generators]).to(known)
        c = context(known, mask, keep, eps)
        ask = lambda labels, **how: lambda z, tau: model(z, tau, labels=labels, regime=regime, **how)   # noqa: E731
        null = self.theta.null_labels(len(labels), self.device)
        denoise = chained_guidance([ask(null), ask(labels), ask(labels, context=c)], [label_guidance, context_guidance])
        denoise = anchored(self.schedule, denoise, known) if stage == "interpolation" else denoise
        times = ddim_times(self.config.steps if steps is None else steps, power=POWER)
        return ddim(self.schedule, denoise, noise, times, "v", eta, generators, order=1 if eta else 2)

    def rollout(self, labels, frames, seed=0, first=None, context=2, context_guidance=None, label_guidance=None,
                augment=0, steps=None, progress=None):
        """A film without end (section 3.2), as a generator of latents (b n c h w), each part as soon as it is made.

        The image model gives frame one, S = 1 the first window, S = `context` all others. first: (b n c h w), what
        there is already, in place of the image model's frame. Nothing is kept but the last frames: memory is constant.
        labels (b, n); progress wraps the list of windows (tqdm, say). MINI: labels are guided as hard as the context is
        (label_guidance None). It costs no evaluation more; by the context alone, what is asked for fades and a day turns to night.
        """
        self.stage("prediction")
        context_guidance = self.config.context_guidance if context_guidance is None else context_guidance
        label_guidance = context_guidance if label_guidance is None else label_guidance
        how = dict(context_guidance=context_guidance, label_guidance=label_guidance, augment=augment, steps=steps)
        return self._roll(labels, frames, seed, first, context, progress, how)

    def _roll(self, labels, frames, seed, first, context, progress, how):
        b, size = len(labels), self.config.frames
        z = self.latents(labels, frames=1, alpha=1, seed=seed, steps=how["steps"]) if first is None else first
        yield z
        windows = prediction_windows(frames, size, context, done=z.shape[1])
        for given, made in progress(windows) if progress else windows:
            generators = [rng(seed, 2 + made[0], i) for i in range(b)]
            noise = torch.stack([torch.randn(size, *z.shape[2:], generator=g) for g in generators]).to(z)
            known = torch.cat([z[:, -len(given):], torch.zeros_like(noise)[:, len(given):]], dim=1)
            mask = context_mask(size, len(given)).expand(b, -1)
            new = self.sample_with_context("prediction", labels, known, mask, noise, generators, **how)[:, len(given):]
            yield (new := new[:, :len(made)])
            z = torch.cat([z, new], dim=1)[:, -max(2, context):]

    def interpolate(self, z, labels, regime, seed=0, steps=5, batch=8):
        """T to 4T (regime 0) or 4T to 16T (regime 1), section 3.3: latents (b n c h w) -> (b 4(n - 1) + 1 c h w)."""
        b, n = z.shape[:2]
        ends = torch.stack([z[:, :-1], z[:, 1:]], dim=2).flatten(0, 1)                          # (b (n-1)) 2 c h w
        there = labels.repeat_interleave(n - 1, 0)
        out = []
        for at, (part, some) in enumerate(zip(ends.split(batch), there.split(batch))):
            generators = [rng(seed, 1_000_000 + regime, at * batch + i) for i in range(len(part))]
            noise = torch.stack([torch.randn(5, *z.shape[2:], generator=g) for g in generators]).to(z)
            known = torch.cat([part[:, :1], torch.zeros_like(noise)[:, 1:4], part[:, 1:]], dim=1)
            told = torch.full((len(part),), regime, device=z.device)
            out.append(self.sample_with_context("interpolation", some, known, context_mask(5, 1, 1).expand(len(part), -1),
                                         noise, generators, regime=told, steps=steps))
        windows = rearrange(torch.cat(out), "(b n) t c h w -> b n t c h w", b=b)
        # given frames stay to the bit
        return torch.cat([torch.cat([z[:, :-1, None], windows[:, :, 1:4]], dim=2).flatten(1, 2), z[:, -1:]], dim=1)

    @torch.no_grad()
    def decode(self, z):
        """Latents (b t c h w) -> films (b t 3 h w) in [-1, 1], some frames at a time."""
        parts = self.decoder.chunks(z) if self.decoder.net else self.decoder.chunks(z, 32, 0)
        return torch.cat(list(parts), dim=1).clamp(-1, 1)

    def smooth_video(self, labels, seed=0, progress=None, kind=None, **how):
        """Key frames, two passes of interpolation, temporal decoding: T = 8 becomes 113 frames, 16 times the rate.

        kind: "pixel" or "latent": an upsampler makes it four times as large in the end (paper, Fig. 5).
        """
        up = self.upsampler(kind) if kind else None
        z = self.latents(labels, seed=seed, progress=progress, **how)
        x = self.decode(self.interpolate(self.interpolate(z, labels, 0, seed), labels, 1, seed))
        return up(x, seed=seed, progress=progress) if up else x

    def upsampler(self, kind="pixel"):
        """The upsampler of that kind ("pixel", "latent") that lies beside these weights, a VideoUpsampler."""
        if self.folder is None:
            raise ValueError("this model came from no folder of weights: VideoUpsampler.from_pretrained takes one")
        return VideoUpsampler.from_pretrained(self.folder, kind, self.device)

    def generate(self, labels, **how):
        """Films (b t 3 h w) in [-1, 1] for labels (b, n); the arguments of `latents`."""
        return self.decode(self.latents(labels, **how))
