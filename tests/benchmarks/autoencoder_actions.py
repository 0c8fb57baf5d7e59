"""PSNR of the autoencoder of `actions` on a person that it was not trained on, and scale of its
latents.

psnr_db: peak signal-to-noise ratio over all frames of held-out person 8 (one mean squared error
over all of them, values in [-1, 1], so a peak of 2), encoded to the mean latent and decoded.
latent_std: standard deviation of those latents; 0.9 to 1.1 is good. Baselines: averaging over
squares as large as a latent (f = 4), and the mean frame of each clip.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples, measures

from ._common import number

# a pixel moves where it is further than this from its mean over time
MOVES = 0.2


def pooled_psnr(x: Tensor, y: Tensor) -> float:
    """PSNR of all values together, dB (the mean of each frame's is higher)."""
    return number(measures.psnr(x[None], y[None]), 2)


def averaged(x: Tensor, factor: int) -> Tensor:
    """Frames (n 3 h w) averaged over squares of factor x factor and enlarged again."""
    small = F.avg_pool2d(x, factor)
    large = F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)
    return large.clamp(-1, 1)


@torch.no_grad()
def encode_and_decode(model: Autoencoder, x: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Frames (n 3 h w) -> latents, frames decoded from them."""
    z = torch.cat([model.encode(part) for part in x.split(batch)])
    return z, torch.cat([model.decode(part) for part in z.split(batch)]).clamp(-1, 1)


def mean_frames(clips: Sequence[video.VideoClip]) -> Tensor:
    """The mean frame of each clip, repeated: (n 3 h w)."""
    return torch.cat([video.to_float(clip.frames).mean(0, keepdim=True)
                      .expand(len(clip.frames), -1, -1, -1) for clip in clips])


def run(model: Autoencoder | None = None, clips: Sequence[video.VideoClip] | None = None) -> dict:
    """All figures; arguments are for tests."""
    if model is None:
        folder = weights.shipped(action_samples.WEIGHTS)
        model = Autoencoder.from_pretrained(folder / "autoencoder")
    clips = clips or video.actions()
    held_out = [clip for clip in clips if clip.labels["person"] == video.HELD_OUT_PERSON]
    x = video.to_float(torch.cat([clip.frames for clip in held_out]))
    still = mean_frames(held_out)
    trained, _ = video.split(clips)
    known = video.to_float(torch.cat([clip.frames[::7] for clip in trained]))
    z, y = encode_and_decode(model, x)
    z_known, y_known = encode_and_decode(model, known)
    moving = (x - still).abs().amax(1, keepdim=True).gt(MOVES).expand_as(x)
    return {"psnr_db": pooled_psnr(y, x), "latent_std": number(z.double().std(), 4), "n": len(x),
            "psnr_db_per_frame_mean": number(measures.psnr(y, x).mean(), 2),
            "psnr_db_where_it_moves": pooled_psnr(y[moving], x[moving]),
            "latent_std_per_channel": [round(v, 3) for v in z.double().std((0, 2, 3)).tolist()],
            "latent_mean": number(z.double().mean(), 4),
            "trained": {"psnr_db": pooled_psnr(y_known, known),
                        "latent_std": number(z_known.double().std(), 4), "n": len(known)},
            "baselines": {"averaged": pooled_psnr(averaged(x, model.factor), x),
                          "mean frame": pooled_psnr(still, x)}}
