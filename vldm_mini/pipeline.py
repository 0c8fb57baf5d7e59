"""From trained weights to videos: image model, temporal layers and autoencoder in one object.

Paper: Fig. 5, sections 3.1 to 3.4. Chapters 00, 04, 06, 07 and 08 walk through it.

    model = VideoLDM.from_pretrained("actions")
    labels = model.labels(action="bend", person=2)
    video = model.generate(labels, frames=8, seed=0)        # (1 8 3 64 64) in [-1, 1]
    frames = model.generate(labels, frames=8, alpha=1)      # the image model from the same noise

    for z in model.rollout(labels, frames=500): ...         # section 3.2: a video of any length
    video = model.smooth_video(labels)                      # section 3.3: 8 key frames to 113
    large = model.smooth_video(labels, kind="pixel")        # section 3.4: and four times as high
"""
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from . import machine
from .autoencoder import Autoencoder, VideoDecoder
from .context import (
    anchored_denoiser,
    context_condition,
    context_mask,
    prediction_windows,
)
from .diffusion import (
    Schedule,
    chained_guidance,
    ddim,
    ddim_times,
    guided,
    rng,
    target,
    to_eps,
    to_x0,
)
from .insertion import saved_names
from .latent_model import LatentModel, PipelineConfig, check_finite
from .layer_classes import LayerClass
from .temporal import TemporalLayers, VideoModel, band
from .unet import UNet
from .upsampler import VideoUpsampler
from .weights import CONFIG, load_config, read_json, shipped

# the stages conditioned on frames that a folder of weights may hold beside the first three
CONTEXT_STAGES = ("prediction", "interpolation")


def _accepts(module: nn.Module, name: str) -> bool:
    """Whether the forward pass of a module takes an argument of that name."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _load_backbone(folder: Path) -> nn.Module:
    """Our UNet, or the diffusers model whose class stands in config.json."""
    path = folder / CONFIG
    config = read_json(path) if path.is_file() else {}
    if "_class_name" not in config:
        return UNet.from_pretrained(folder)
    import diffusers
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder).eval()


def _load_layers(folder: Path, backbone: nn.Module, conv=None, attention=None) -> TemporalLayers:
    """Temporal layers of a folder; a reader's own class is used where the folder names it."""
    saved = saved_names(folder) if (folder / CONFIG).is_file() else {}
    own = {kind: given for kind, given in (("conv", conv), ("attention", attention))
           if given is not None and LayerClass.of(given).name == saved.get(kind)}
    return TemporalLayers.from_pretrained(folder, backbone, **own)


class VideoLDM(LatentModel):
    """Autoencoder, image backbone theta and temporal layers phi. Videos are (b t 3 h w) in [-1, 1].

    theta: our UNet or a diffusers UNet2DConditionModel. context_models: {"prediction" or
    "interpolation": temporal layers of their own on the same theta}. decoder: temporal layers of
    the decoder. Other arguments: see LatentModel. Sampling changes nothing in the
    object, so that several threads may call one model at the same time.
    """

    def __init__(self, autoencoder: Autoencoder, theta: nn.Module, layers: TemporalLayers,
                 config: PipelineConfig, context_models: dict[str, TemporalLayers] | None = None,
                 decoder: TemporalLayers | None = None, folder: Path | None = None,
                 schedule: Schedule | None = None, prediction: str | None = None):
        decode = VideoDecoder(autoencoder, decoder)
        super().__init__(theta, decode, config, folder, schedule, prediction)
        self.layers, self.model = layers, VideoModel(theta, layers)
        self.context_models = {stage: VideoModel(theta, phi)
                               for stage, phi in (context_models or {}).items()}

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device | None = None,
                        dtype: torch.dtype | None = None, conv: Any = None,
                        attention: Any = None, **options: Any) -> "VideoLDM":
        """name: shipped weights ("actions"), or a folder as save_pretrained or training leaves it.

        device: None takes the fastest here. dtype: None is float32. conv, attention: a reader's own
        classes of temporal layers, used for the stages that were saved with them. options:
        `schedule` and `prediction`, for a backbone whose config does not say them. Raises
        FileNotFoundError for a stage that is missing, ValueError for one that is damaged.
        """
        folder = shipped(name)
        config = load_config(PipelineConfig, folder / CONFIG)
        autoencoder = Autoencoder.from_pretrained(folder / "autoencoder")
        theta = _load_backbone(folder / "image")

        def layers(stage: str, backbone: nn.Module) -> TemporalLayers:
            return _load_layers(folder / stage, backbone, conv, attention)

        context_models = {stage: layers(stage, theta) for stage in CONTEXT_STAGES
                          if (folder / stage).is_dir()}
        has_decoder = (folder / "decoder").is_dir()
        decoder = layers("decoder", autoencoder.decoder) if has_decoder else None
        model = cls(autoencoder, theta, layers("temporal", theta), config, context_models, decoder,
                    folder, **options)
        return model.to(device or machine.device(), dtype)

    @property
    def components(self) -> dict[str, nn.Module]:
        parts = {"autoencoder": self.autoencoder, "image": self.theta, "temporal": self.layers}
        parts |= {stage: video.layers for stage, video in self.context_models.items()}
        if self.decoder.layers is not None:
            parts["decoder"] = self.decoder.layers
        return parts

    def _denoiser(self, model: VideoModel, labels: Tensor, text: Tensor | None = None,
                  **arguments) -> Callable[[Tensor, Tensor], Tensor]:
        """A denoiser in float32 around a network in any number format, with its conditions."""
        if hasattr(self.theta, "null_labels"):
            arguments["labels"] = labels
        if text is not None:
            takes_text = _accepts(self.theta, "encoder_hidden_states")
            arguments["encoder_hidden_states" if takes_text else "text"] = text.to(self.dtype)

        def denoise(z: Tensor, tau: Tensor) -> Tensor:
            return model(z.to(self.dtype), tau, **arguments).float()
        return denoise

    def _null_labels(self, labels: Tensor) -> Tensor:
        if hasattr(self.theta, "null_labels"):
            return self.theta.null_labels(len(labels), self.device)
        return labels

    @torch.no_grad()
    def latents(self, labels: Tensor, frames: int | None = None, alpha: float | None = None,
                seed: int = 0, steps: int | None = None, label_guidance: float | None = None,
                noise: Tensor | None = None, progress: Callable | None = None,
                temporal_guidance: float | None = None, eta: float | None = None,
                size: tuple[int, int] | None = None, text: Tensor | None = None,
                null_text: Tensor | None = None) -> Tensor:
        """Noise to latents (b t c h w). labels: (b, n). What is None is as the config says.

        alpha: None as trained, 1 the image model, else one fixed value for every mix. frames and
        size (height, width in pixels) may differ from training: in space all networks are
        convolutional; in time, each frame then attends to those as near as in training (paper,
        appendix D). label_guidance: by labels and text. temporal_guidance: by the temporal layers;
        at alpha = 1 there is none. noise (b t c h w): replaces the starting noise; `seed` still
        gives the noise of later steps (eta). text, null_text (b l d): text tokens, and those of an
        empty prompt for guidance. progress wraps the list of steps (tqdm). Raises ValueError for
        values out of range, FloatingPointError for latents that are not finite.
        """
        config = self.config
        frames = config.frames if frames is None else frames
        label_guidance = config.label_guidance if label_guidance is None else label_guidance
        if temporal_guidance is None:
            temporal_guidance = config.temporal_guidance
        eta = config.eta if eta is None else eta
        if frames < 1:
            raise ValueError(f"a video has at least one frame, got {frames}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha lies in [0, 1], got {alpha}")
        if text is not None and null_text is None and label_guidance != 1:
            raise ValueError("guidance by a text needs null_text, the tokens of an empty prompt")
        z = self.noise(len(labels), frames, seed, size) if noise is None else noise
        longer = z.shape[1] > config.frames
        mask = band(z.shape[1], config.frames - 1).to(self.device) if longer else None
        null = self._null_labels(labels)

        def by_labels(image: bool) -> Callable:
            how = dict(image=image, mask=mask, alpha=alpha)
            return guided(self._denoiser(self.model, labels, text, **how),
                          self._denoiser(self.model, null, null_text, **how), label_guidance)

        # MINI: y = f_image + w (f_video - f_image): a model guided by a weaker version of itself
        # (Karras et al. 2024, arXiv 2406.02507), the image model. It exaggerates what the temporal
        # layers add, above one tau only, as Kynkaanniemi et al. 2024, arXiv 2404.07724, do with
        # labels
        plain = by_labels(image=alpha == 1)
        strong = plain if alpha == 1 else guided(plain, by_labels(image=True), temporal_guidance)

        def denoise(z: Tensor, tau: Tensor) -> Tensor:
            if strong is not plain and int(tau[0]) > config.temporal_guidance_above:
                return strong(z, tau)
            return plain(z, tau)

        times = ddim_times(config.steps if steps is None else steps, self.schedule.num_steps)
        generators = [rng(seed, 1, i) for i in range(len(z))]
        z = ddim(self.schedule, denoise, z, times, self.prediction, eta, generators, progress)
        return check_finite(z, "image" if alpha == 1 else "temporal")

    def stage(self, name: str) -> VideoModel:
        """The video model of "prediction" or "interpolation"; ValueError if there is none."""
        if name not in self.context_models:
            raise ValueError(f"these weights hold no {name}; train it: python -m vldm_mini train "
                             f"{name}, or use weights that have it")
        return self.context_models[name]

    def _as_v(self, denoise: Callable) -> Callable:
        """The same denoiser, its prediction turned into v."""
        def denoise_v(z: Tensor, tau: Tensor) -> Tensor:
            y = denoise(z, tau)
            x0, eps = (f(self.schedule, z, y, tau, self.prediction) for f in (to_x0, to_eps))
            return target(self.schedule, x0, eps, tau, "v")
        return denoise if self.prediction == "v" else denoise_v

    @torch.no_grad()
    def sample_with_context(self, stage: str, labels: Tensor, known: Tensor, mask: Tensor,
                            noise: Tensor, generators: list[torch.Generator],
                            regime: Tensor | None = None, context_guidance: float = 1.0,
                            label_guidance: float = 1.0, augment: int = 0,
                            steps: int | None = None, eta: float = 0.0) -> Tensor:
        """One window of a stage conditioned on frames: noise (b t c h w) -> latents like it.

        known (b t c h w): clean latents where mask (b t) is 1. context_guidance: s of eq. (4);
        label_guidance: by the labels; equal scales cost one evaluation less. augment: tau of the
        noise augmentation of the context, 0 for none. regime (b,): of interpolation. At context
        frames, too, prediction returns what the network predicts; nothing is pasted over it.
        """
        model, config = self.stage(stage), self.config
        keep = self.schedule.alpha_tau[augment].expand(len(known)).to(known) if augment else None
        eps = torch.stack([torch.randn(known.shape[1:], generator=g) for g in generators]).to(known)
        c = context_condition(known, mask, keep, eps).to(self.dtype)
        chain = [self._denoiser(model, self._null_labels(labels), regime=regime),
                 self._denoiser(model, labels, regime=regime),
                 self._denoiser(model, labels, regime=regime, context=c)]
        denoise = self._as_v(chained_guidance(chain, [label_guidance, context_guidance]))
        if stage == "interpolation" and config.anchored:
            denoise = anchored_denoiser(self.schedule, denoise, known)
        times = ddim_times(config.steps if steps is None else steps, self.schedule.num_steps,
                           config.context_power)
        order = 1 if eta else config.context_order
        z = ddim(self.schedule, denoise, noise, times, "v", eta, generators, order=order)
        return check_finite(z, stage)

    def rollout(self, labels: Tensor, frames: int, seed: int = 0, first: Tensor | None = None,
                context: int = 2, context_guidance: float | None = None,
                label_guidance: float | None = None, augment: int = 0, steps: int | None = None,
                progress: Callable | None = None) -> Iterator[Tensor]:
        """A video of any length (section 3.2), as a generator of latents (b n c h w).

        The image model gives the first frame, or `first` (b n c h w) replaces it; S = 1 in the
        first window, S = `context` in all others. Only the last frames are kept, so that memory is
        constant. labels (b, n); progress wraps the list of windows (tqdm). label_guidance: None
        takes 1, or context_guidance if the config sets guide_labels_with_context.
        """
        self.stage("prediction")
        if context_guidance is None:
            context_guidance = self.config.context_guidance
        if label_guidance is None:
            label_guidance = context_guidance if self.config.guide_labels_with_context else 1.0
        how = dict(context_guidance=context_guidance, label_guidance=label_guidance,
                   augment=augment, steps=steps)
        return self._rollout(labels, frames, seed, first, context, progress, how)

    def _rollout(self, labels, frames, seed, first, context, progress, how) -> Iterator[Tensor]:
        b, size = len(labels), self.config.frames
        z = first
        if z is None:
            z = self.latents(labels, frames=1, alpha=1, seed=seed, steps=how["steps"])
        yield z
        windows = prediction_windows(frames, size, context, done=z.shape[1])
        for given, new in progress(windows) if progress else windows:
            generators = [rng(seed, 2 + new[0], i) for i in range(b)]
            noise = torch.stack([torch.randn(size, *z.shape[2:], generator=g) for g in generators])
            noise, s = noise.to(z), len(given)
            known = torch.cat([z[:, -s:], torch.zeros_like(noise)[:, s:]], dim=1)
            mask = context_mask(size, s).expand(b, -1)
            window = self.sample_with_context("prediction", labels, known, mask, noise, generators,
                                              **how)
            part = window[:, s:][:, :len(new)]
            yield part
            z = torch.cat([z, part], dim=1)[:, -max(2, context):].clone()      # the rest is freed

    def interpolate(self, z: Tensor, labels: Tensor, regime: int, seed: int = 0, steps: int = 5,
                    batch: int = 8) -> Tensor:
        """Section 3.3: three frames between each two: (b n c h w) -> (b 4(n - 1) + 1 c h w).

        regime: 0 for T to 4T, 1 for 4T to 16T. Key frames stay exactly as they are. batch: windows
        at a time; a window's noise depends on (seed, regime, its number) alone.
        """
        b, n = z.shape[:2]
        ends = torch.stack([z[:, :-1], z[:, 1:]], dim=2).flatten(0, 1)         # (b (n-1)) 2 c h w
        window_labels = labels.repeat_interleave(n - 1, 0)
        windows = []
        for at in range(0, len(ends), batch):
            part = ends[at:at + batch]
            generators = [rng(seed, 1_000_000 + regime, at + i) for i in range(len(part))]
            noise = torch.stack([torch.randn(5, *z.shape[2:], generator=g) for g in generators])
            noise = noise.to(z)
            known = torch.cat([part[:, :1], torch.zeros_like(noise)[:, 1:4], part[:, 1:]], dim=1)
            mask = context_mask(5, 1, 1).expand(len(part), -1)
            regimes = torch.full((len(part),), regime, device=z.device)
            windows.append(self.sample_with_context(
                "interpolation", window_labels[at:at + batch], known, mask, noise, generators,
                regime=regimes, steps=steps))
        windows = rearrange(torch.cat(windows), "(b n) t c h w -> b n t c h w", b=b)
        between = torch.cat([z[:, :-1, None], windows[:, :, 1:4]], dim=2).flatten(1, 2)
        return torch.cat([between, z[:, -1:]], dim=1)

    def smooth_video(self, labels: Tensor, seed: int = 0, progress: Callable | None = None,
                     kind: str | None = None, **how: Any) -> Tensor:
        """Key frames, two passes of interpolation, decoding: T = 8 becomes 113 frames (Fig. 5).

        kind: "pixel" or "latent" makes it four times as large with that upsampler. how: the
        arguments of `latents`. -> (b 16(T - 1) + 1 3 h w).
        """
        upsampler = self.upsampler(kind) if kind else None
        z = self.latents(labels, seed=seed, progress=progress, **how)
        for regime in (0, 1):
            z = self.interpolate(z, labels, regime, seed)
        video = self.decode(z)
        return upsampler(video, seed=seed, progress=progress) if upsampler else video

    def upsampler(self, kind: str = "pixel") -> VideoUpsampler:
        """The upsampler of that kind ("pixel", "latent") in the folder of these weights."""
        if self.folder is None:
            raise ValueError("this model came from no folder of weights: "
                             "VideoUpsampler.from_pretrained takes one")
        return VideoUpsampler.from_pretrained(self.folder, kind, self.device)
