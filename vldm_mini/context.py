"""Context: which frames of a clip are given, how the network is told them, and the windows of long films.

Paper: section 3.2, 3.3, eq. (3), Fig. 4. A model that is told some frames of its clip makes the others: the first S of
them given, it predicts; both ends given, it interpolates. Chapters 06 and 07 walk it.
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .blocks import zero_init


def context_mask(frames, first=0, last=0):
    """m_S: 1 on frames that are given, 0 on those to make -> (frames,) float.

    None given: (0, 0). Prediction: the first S. Interpolation: the first one and the last one.
    """
    if first < 0 or last < 0 or first + last > frames:
        raise ValueError(f"cannot give {first} first and {last} last of {frames} frames")
    at = torch.arange(frames)
    return ((at < first) | (at >= frames - last)).float()


def context(z, mask, keep=None, eps=None):
    """c_S = (m_S * z, m_S), channels beside channels. z (b t c h w) clean, mask (b t) -> (b c+1 t h w).

    keep (b,), eps like z: noise augmentation, c_S = m_S * (keep z + sqrt(1 - keep^2) eps, keep).
    MINI: the network is told how much noise there is by the mask itself: what is given counts `keep`, not 1.
    """
    if keep is None:
        keep = torch.ones(len(z), device=z.device)
    else:
        keep = keep.to(z.dtype)
        z = keep[:, None, None, None, None] * z + (1 - keep ** 2).sqrt()[:, None, None, None, None] * eps
    mask = rearrange(mask.to(z), "b t -> b 1 t 1 1")
    told = (mask * keep[:, None, None, None, None]).expand(-1, -1, -1, *z.shape[3:])
    # c_S = (m_S o z, m_S)                                                                    paper, section 3.2
    return torch.cat([mask * rearrange(z, "b t c h w -> b c t h w"), told], dim=1)


def linear_interpolation(x):
    """The linear_interpolation line in time from the first frame to the last: a blend. (b t c h w) -> like x."""
    share = torch.linspace(0, 1, x.shape[1], device=x.device, dtype=x.dtype)
    return x[:, :1].lerp(x[:, -1:], share[:, None, None, None])


def anchored(schedule, denoise, known):
    """A v-denoiser whose answer at both ends is what is known there, and between them off by what its own ends are not.

    MINI: of an interpolation only the departure from the blend of its ends is asked of the network. What it gets wrong
    at the ends, where the answer is known, it gets wrong between them as well: that line is taken off. So no part of
    it is spent on copying the ends to the digit; the paper has no such step. known (b t c h w): clean, ends only count.
    """
    def denoise_anchored(z, tau):
        alpha_tau, sigma_tau = schedule.at(tau, z)
        y = denoise(z, tau)
        # z = alpha_tau x + sigma_tau eps and v = alpha_tau eps - sigma_tau x, so v = (alpha_tau z - x) / sigma_tau
        return y - linear_interpolation(y - (alpha_tau * z - known) / sigma_tau)
    return denoise_anchored


class LearnedDownsampling(nn.Conv2d):
    """c_S (b c+1 t h w), resized to the insertion_points of a layer, through a convolution of the layer's own (paper, Fig. 4).

    MINI: mean of the insertion_points for the resizing, 3x3, added to what the layer sees. No bias and zeros at first: an
    untrained c_S, a mask of zeros and no context at all are the same to the bit.
    """

    def __init__(self, context_channels, channels):
        super().__init__(context_channels, channels, 3, padding=1, bias=False)
        zero_init(self)

    def forward(self, c, height, width):
        frames = rearrange(c, "b c t h w -> (b t) c h w")
        small = super().forward(F.adaptive_avg_pool2d(frames, (height, width)))
        return rearrange(small, "(b t) c h w -> b c t h w", t=c.shape[2])


# ---------------------------------------------------------------------------------------------------------------------
# Windows: which frames each call of a model is given, and which it makes, and the parts of long films. Pure functions.

def prediction_windows(frames, window, context=2, done=1):
    """The rollout of section 3.2: frame 0 is there; then S = 1, then S = `context` -> [(given, made)], lists of frames.

    Each frame but the `done` first is made exactly once; given ones exist already. The last window may make fewer.
    """
    if not 1 <= context < window or done < 1:
        raise ValueError(f"a window of {window} frames can be given 1 to {window - 1} frames, got {context} of {done}")
    windows = []
    while done < frames:
        given = list(range(max(0, done - context), done))
        made = list(range(done, min(frames, given[0] + window)))
        windows.append((given, made))
        done = made[-1] + 1
    return windows


def interpolation_windows(frames, factor=4):
    """One pass of section 3.3 -> [(given, made)]: frame k becomes frame factor * k, factor - 1 between two of them.

    n frames become factor * (n - 1) + 1.
    """
    if frames < 2 or factor < 2:
        raise ValueError(f"interpolation needs two frames and a factor of at least 2, got {frames} and {factor}")
    return [([factor * k, factor * (k + 1)], list(range(factor * k + 1, factor * (k + 1)))) for k in range(frames - 1)]


def tiles(size, tile, overlap):
    """A film's length, or one side of a frame, in overlapping parts -> [(what is seen, what of it is kept)], slices.

    Each place is kept exactly once; what is seen reaches `overlap` further on both sides, where there is any.
    """
    if tile < 1 or overlap < 0:
        raise ValueError(f"a part has at least one place or frame and no negative overlap, got {tile} and {overlap}")
    return [(slice(max(0, at - overlap), min(size, at + tile + overlap)), slice(at, min(size, at + tile)))
            for at in range(0, size, tile)]
