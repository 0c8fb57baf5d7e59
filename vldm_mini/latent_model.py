"""What all models on latents share: configuration, labels, noise, decoding, saving.

VideoLDM (`pipeline`) and BoxImageLDM (`boxes`) build on it.
"""
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import VideoDecoder
from .diffusion import Schedule, rng
from .weights import CARD, CONFIG, write_text

DECODED_AT_ONCE = 32                          # frames
COPIED = ("upsampler", "latent_upsampler", "boxes")      # folders that save_pretrained copies


@dataclass(frozen=True)
class PipelineConfig:
    """What the weights alone do not say, and how to sample. The defaults are the paper's way."""
    label_names: tuple = ()                   # (("action", ("wave", "bend", ...)), ...)
    pixels: int = 64                          # height of a frame
    width: int = 0                            # 0: the same as the height
    frames: int = 8                           # T of training
    fps: float = 8.0                          # of a generated video
    steps: int = 24                           # DDIM steps
    label_guidance: float = 1.0               # 1: none, at half the cost
    context_guidance: float = 1.5             # s of eq. (4); 1: none. The paper names no value
    eta: float = 0.0                          # new noise at each step: 0 none, 1 as in DDPM
    # MINI: guidance by the image model (see `latents`) makes the motion of small models stronger
    temporal_guidance: float = 1.0            # 1: none, at two thirds of the cost
    temporal_guidance_above: int = 0          # only at tau above this: below, it adds flicker
    # MINI: a rollout guides labels as hard as context, or they fade: a day turns into a night
    guide_labels_with_context: bool = False
    # MINI: where frames are given, second order and unevenly spaced steps: as few steps of first
    # order blur. Of a Gaussian, whose answer is known, ten steps of order 2 and power 1.5 have a
    # smaller error than forty even steps of order 1
    context_order: int = 1                    # 2: DPM-Solver++ 2M
    context_power: float = 1.0                # of ddim_times; above 1: more steps at low tau
    # MINI: interpolation predicts the departure from a line in time (context.anchored_denoiser)
    anchored: bool = False


def check_finite(z: Tensor, stage: str) -> Tensor:
    """z itself. Raises FloatingPointError, which names the stage, if a number is not finite."""
    if not torch.isfinite(z).all():
        raise FloatingPointError(
            f"the stage {stage!r} gave latents that are not finite: its weights are damaged or its "
            "training diverged, or the prediction type and the schedule are not the model's own")
    return z


class LatentModel:
    """An autoencoder and the image backbone theta of a diffusion model on its latents.

    decoder: a VideoDecoder. folder: where the weights come from, or None. schedule, prediction:
    None takes those of theta's config.
    """

    def __init__(self, theta: nn.Module, decoder: VideoDecoder, config: PipelineConfig,
                 folder: Path | None = None, schedule: Schedule | None = None,
                 prediction: str | None = None):
        self.theta, self.decoder, self.config, self.folder = theta, decoder, config, folder
        self.autoencoder = decoder.autoencoder
        self.schedule = schedule or getattr(theta, "schedule", None) or Schedule.linear()
        self.prediction = prediction or getattr(theta, "prediction", "v")

    @property
    def components(self) -> dict[str, nn.Module]:
        """{name of the folder: module} of everything that is loaded, moved and saved."""
        raise NotImplementedError

    def latents(self, labels: Tensor, **how: Any) -> Tensor:
        """Noise to latents (b t c h w) for labels (b, n)."""
        raise NotImplementedError

    def generate(self, labels: Tensor, **how: Any) -> Tensor:
        """Videos (b t 3 h w) in [-1, 1] for labels (b, n). how: the arguments of `latents`."""
        return self.decode(self.latents(labels, **how))

    @torch.no_grad()
    def decode_parts(self, z: Tensor) -> Iterator[Tensor]:
        """Latents (b t c h w) -> parts (b n 3 h w) of the video in [-1, 1], one after another.

        The temporal decoder takes 8 frames of each video and their neighbours at a time; the
        frame-wise decoder 32 frames of all videos together.
        """
        frames, overlap = 8, 4
        if self.decoder.net is None:
            frames, overlap = max(1, DECODED_AT_ONCE // len(z)), 0
        for part in self.decoder.chunks(z.to(self.dtype), frames, overlap):
            yield part.float().clamp(-1, 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (b t c h w) -> videos (b t 3 h w) in [-1, 1], decoded in parts."""
        b, frames, _, h, w = z.shape
        factor, done = self.autoencoder.factor, 0
        video = torch.empty(b, frames, 3, factor * h, factor * w, device=z.device)
        for part in self.decode_parts(z):
            video[:, done:done + part.shape[1]] = part
            done += part.shape[1]
        return video

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.theta.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the networks; sampling itself is in float32 always."""
        return next(self.theta.parameters()).dtype

    def to(self, device: str | torch.device | None = None,
           dtype: torch.dtype | None = None) -> "LatentModel":
        """Move all networks, in place. -> self."""
        for part in self.components.values():
            part.to(device=device, dtype=dtype)
        return self

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """All parts, config.json, and what else the folder of these weights holds (upsamplers).

        dtype: the number format on disk (float32, float16, bfloat16, int8); float32 is exact.
        """
        folder = Path(folder)
        for name, part in self.components.items():
            card = self.folder / name / CARD if self.folder else None
            text = card.read_text(encoding="utf-8") if card and card.is_file() else ""
            if hasattr(part, "config") and not hasattr(part, "config_class"):     # of diffusers
                part.save_pretrained(folder / name)
            else:
                part.save_pretrained(folder / name, text, dtype)
        write_text(folder / CONFIG, json.dumps(asdict(self.config), indent=1) + "\n")
        for name in COPIED:
            source = self.folder / name if self.folder else None
            if source and source.is_dir() and source.resolve() != (folder / name).resolve():
                shutil.copytree(source, folder / name, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns("state.*"))

    def labels(self, **values: str | int) -> Tensor:
        """Names or numbers -> labels (1, n) long: labels(action="bend", person=2).

        A label that is left out becomes the null label. Raises ValueError for unknown ones.
        """
        known = dict(self.config.label_names)
        for name in values.keys() - known.keys():
            raise ValueError(f"unknown label {name!r}; the labels of this model: "
                             f"{', '.join(known) or 'none'}")
        ids = []
        for name, classes in known.items():
            value = values.get(name, len(classes))
            if isinstance(value, str) and value not in classes:
                raise ValueError(f"unknown {name} {value!r}; choose from: "
                                 f"{', '.join(map(str, classes))}")
            value = list(classes).index(value) if isinstance(value, str) else int(value)
            if not 0 <= value <= len(classes):
                raise ValueError(f"{name} must lie in 0..{len(classes) - 1}, got {value}")
            ids.append(value)
        return torch.tensor([ids], device=self.device).long()

    def noise(self, n: int, frames: int, seed: int = 0,
              size: tuple[int, int] | None = None) -> Tensor:
        """Starting noise (n t c h w). Clip i's depends on (seed, i) alone, not on n.

        size: (height, width) in pixels. Raises ValueError if theta cannot halve it as often as it
        does.
        """
        size = size or (self.config.pixels, self.config.width or self.config.pixels)
        config = self.theta.config
        levels = len(getattr(config, "channels", None) or config.block_out_channels)
        least = self.autoencoder.factor * 2 ** (levels - 1)
        if any(side < least or side % least for side in size):
            raise ValueError(f"height and width must be multiples of {least} pixels, "
                             f"got {tuple(size)}")
        height, width = (side // self.autoencoder.factor for side in size)
        shape = (frames, self.autoencoder.config.latent_channels, height, width)
        clips = [torch.randn(shape, generator=rng(seed, 0, i)) for i in range(n)]
        return torch.stack(clips).to(self.device)
