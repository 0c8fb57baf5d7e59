"""How well the shipped autoencoder gives back frames of a person it never saw, and how its latents are scaled.

psnr_db: peak signal-to-noise ratio over all frames of held-out person 8 (mean squared error over all of them, values in
[-1, 1], so a peak of 2), frames encoded to the mean latent and decoded. latent_std: standard deviation of those
latents, 0.9 to 1.1 is good. Opponents: what f = 4 of plain averaging gives back, and the mean frame of each clip.
"""
import torch
import torch.nn.functional as F

from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples, measures


def pooled(x, y):
    """PSNR of all values together, dB (the mean of each frame's is higher)."""
    return round(float(measures.psnr(x[None], y[None])), 2)


def shrunk(x, factor):
    """Frames (n 3 h w) averaged over squares of factor x factor and enlarged again."""
    return F.interpolate(F.avg_pool2d(x, factor), scale_factor=factor, mode="bicubic", align_corners=False).clamp(-1, 1)


@torch.no_grad()
def rebuild(model, x, batch=64):
    """Frames (n 3 h w) -> latents, frames decoded from them."""
    z = torch.cat([model.encode(part) for part in x.split(batch)])
    return z, torch.cat([model.decode(part) for part in z.split(batch)]).clamp(-1, 1)


def run(model=None, clips=None):
    """All figures; arguments are for tests."""
    model = model or Autoencoder.from_pretrained(weights.shipped(action_samples.WEIGHTS) / "autoencoder")
    clips = clips or video.actions()
    strangers = [clip for clip in clips if clip.labels["person"] == video.HELD_OUT_PERSON]
    x = video.to_float(torch.cat([clip.frames for clip in strangers]))
    still = torch.cat([video.to_float(clip.frames).mean(0, keepdim=True).expand(len(clip.frames), -1, -1, -1)
                       for clip in strangers])
    trained, _ = video.split(clips)
    known = video.to_float(torch.cat([clip.frames[::7] for clip in trained]))
    (z, y), (z_known, y_known) = rebuild(model, x), rebuild(model, known)
    moving = (x - still).abs().amax(1, keepdim=True).gt(0.2).expand_as(x)
    return {"psnr_db": pooled(y, x), "latent_std": round(float(z.double().std()), 4), "n": len(x),
            "psnr_db_per_frame_mean": round(float(measures.psnr(y, x).mean()), 2),
            "psnr_db_where_it_moves": pooled(y[moving], x[moving]),
            "latent_std_per_channel": [round(v, 3) for v in z.double().std((0, 2, 3)).tolist()],
            "latent_mean": round(float(z.double().mean()), 4),
            "trained": {"psnr_db": pooled(y_known, known), "latent_std": round(float(z_known.double().std()), 4),
                        "n": len(known)},
            "baselines": {"averaged": pooled(shrunk(x, model.factor), x), "mean frame": pooled(still, x)}}
