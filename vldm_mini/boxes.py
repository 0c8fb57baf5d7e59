"""From bounding boxes to a first frame: an image LDM conditioned on boxes.

Paper: section 4.1.2. Chapter 09 walks through it.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from . import machine
from .autoencoder import Autoencoder, VideoDecoder
from .diffusion import ddim, ddim_times, guided
from .latent_model import LatentModel, PipelineConfig, check_finite
from .unet import UNet
from .weights import CONFIG, load_config, shipped

BOX_CHANNELS = 4


def _coverage(cells: int, low: float, high: float) -> Tensor:
    """How much of each of `cells` equal cells of [0, 1] lies in [low, high]: (cells,) in [0, 1]."""
    edges = torch.arange(cells, dtype=torch.float32)
    return ((edges + 1).clamp(max=high * cells) - edges.clamp(min=low * cells)).clamp(min=0)


def _offset(cells: int, low: float, high: float) -> Tensor:
    """Position of each cell's middle in [low, high], from -1 to 1: (cells,)."""
    middles = (torch.arange(cells, dtype=torch.float32) + 0.5) / cells
    return (2 * (middles - low) / (high - low) - 1).clamp(-1, 1)


def box_map(boxes: Sequence | Tensor, height: int, width: int) -> Tensor:
    """Boxes (n, 4) x0 y0 x1 y1 in [0, 1], the farthest first -> input (4 height width) for theta.

    MINI: the paper does not say how boxes enter its network. Channel 0 is 1 wherever boxes are
    given (0 everywhere if the model is not conditioned on boxes); channel 1 is the share of a cell
    inside a box; channels 2 and 3 are the position inside the box, right and down, from -1 to 1, by
    which adjacent boxes are distinguished. A near box covers a far one. Raises ValueError for a box
    that is empty or reaches outside [0, 1].
    """
    out = torch.zeros(BOX_CHANNELS, height, width)
    out[0] = 1
    for x0, y0, x1, y1 in torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4).tolist():
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError("a box is x0 y0 x1 y1 with 0 <= x0 < x1 <= 1, y likewise; "
                             f"got {(x0, y0, x1, y1)}")
        cover = _coverage(height, y0, y1)[:, None] * _coverage(width, x0, x1)
        right = _offset(width, x0, x1).expand(height, width)
        down = _offset(height, y0, y1)[:, None].expand(height, width)
        out[1:] += cover * (torch.stack([torch.ones_like(cover), right, down]) - out[1:])
    return out


class BoxImageLDM(LatentModel):
    """Single frames with cars inside given boxes: an image LDM of its own on the same latents.

        model = BoxImageLDM.from_pretrained("driving")
        boxes = [[(0.55, 0.4, 0.7, 0.6)]]
        frames = model.generate(model.labels(light="day"), boxes=boxes)         # (1 1 3 64 128)
    """

    def __init__(self, autoencoder: Autoencoder, theta: UNet, config: PipelineConfig,
                 folder: Path | None = None):
        super().__init__(theta, VideoDecoder(autoencoder), config, folder)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device | None = None,
                        dtype: torch.dtype | None = None) -> "BoxImageLDM":
        """name: shipped weights ("driving"), or a folder with autoencoder, boxes, config.json."""
        folder = shipped(name)
        autoencoder = Autoencoder.from_pretrained(folder / "autoencoder")
        theta = UNet.from_pretrained(folder / "boxes")
        model = cls(autoencoder, theta, load_config(PipelineConfig, folder / CONFIG), folder)
        return model.to(device or machine.device(), dtype)

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder, "boxes": self.theta}

    @torch.no_grad()
    def latents(self, labels: Tensor, boxes: list | None = None, seed: int = 0,
                steps: int | None = None, guidance: float = 2.0, noise: Tensor | None = None,
                progress: Callable | None = None) -> Tensor:
        """Noise to latents (b 1 c h w). labels (b, n); boxes: a list of boxes for each frame, or
        None for no condition.

        guidance: by boxes and labels together; 1: none, at half the cost. Raises ValueError unless
        there are as many lists of boxes as labels.
        """
        if boxes is not None and len(boxes) != len(labels):
            raise ValueError(f"one list of boxes a picture: {len(boxes)} lists for "
                             f"{len(labels)} pictures")
        z = (self.noise(len(labels), 1, seed) if noise is None else noise)[:, 0]
        concat = None
        if boxes is not None:
            concat = torch.stack([box_map(some, *z.shape[2:]) for some in boxes])
            concat = concat.to(z.device, self.dtype)
        null = self.theta.null_labels(len(labels), self.device)

        def conditional(z: Tensor, tau: Tensor) -> Tensor:
            return self.theta(z.to(self.dtype), tau, labels, concat).float()

        def unconditional(z: Tensor, tau: Tensor) -> Tensor:
            return self.theta(z.to(self.dtype), tau, null).float()

        times = ddim_times(self.config.steps if steps is None else steps, self.schedule.num_steps)
        z = ddim(self.schedule, guided(conditional, unconditional, guidance), z, times,
                 self.prediction, progress=progress)
        return check_finite(z, "boxes")[:, None]
