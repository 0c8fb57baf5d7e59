"""Bounding boxes to a first frame: an image LDM conditioned on boxes.

Paper: section 4.1.2. Chapter 09 walks through it.
"""
import torch

from . import machine
from .autoencoder import Autoencoder, VideoDecoder
from .diffusion import Schedule, ddim, ddim_times, guided
from .pipeline import PipelineConfig, VideoLDM
from .unet import UNet
from .weights import CONFIG, load_config, shipped

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
        self.decoder = VideoDecoder(autoencoder)

    @classmethod
    def from_pretrained(cls, name, device=None):
        """name: shipped weights ("driving"), or a folder with autoencoder, boxes and config.json."""
        folder, device = shipped(name), device or machine.device()
        return cls(Autoencoder.from_pretrained(folder / "autoencoder").to(device),
                   UNet.from_pretrained(folder / "boxes").to(device), load_config(PipelineConfig, folder / CONFIG))

    @torch.no_grad()
    def latents(self, labels, boxes=None, seed=0, steps=None, guidance=2.0, noise=None, progress=None):
        """Noise to latents (b 1 c h w). labels (b, n); boxes: one list a picture, or None: not told.

        guidance: by boxes and labels together; 1: none, at half the cost.
        """
        if boxes is not None and len(boxes) != len(labels):
            raise ValueError(f"one list of boxes a picture: {len(boxes)} lists for {len(labels)} pictures")
        z = (self.noise(len(labels), 1, seed) if noise is None else noise)[:, 0]
        told = None if boxes is None else torch.stack([box_map(some, *z.shape[2:]) for some in boxes]).to(z.device)
        null = self.theta.null_labels(len(labels), self.device)
        denoise = guided(lambda z, tau: self.theta(z, tau, labels, told),
                         lambda z, tau: self.theta(z, tau, null), guidance)
        times = ddim_times(self.config.steps if steps is None else steps)
        return ddim(self.schedule, denoise, z, times, "v", progress=progress)[:, None]
