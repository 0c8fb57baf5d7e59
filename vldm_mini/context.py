"""Context frames: the mask m_S, the condition c_S, and the windows of long videos.

Paper: sections 3.2 and 3.3, eq. (3), Fig. 4. A model that is conditioned on some frames of a clip
generates the others. With the first S frames as context it predicts; with the first and the last
one it interpolates. Chapters 06 and 07 walk through this module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import zero_init
from .diffusion import Denoiser, Schedule


def context_mask(frames: int, first: int = 0, last: int = 0) -> Tensor:
    """m_S: 1 on context frames, 0 on frames to generate -> (frames,) float.

    first, last: how many frames at either end are context. (0, 0): none; (S, 0): prediction;
    (1, 1): interpolation. Raises ValueError for more context frames than there are frames.
    """
    if first < 0 or last < 0 or first + last > frames:
        raise ValueError(f"cannot give {first} first and {last} last of {frames} frames")
    index = torch.arange(frames)
    return ((index < first) | (index >= frames - last)).float()


def context_condition(
    z: Tensor, mask: Tensor, alpha_tau: Tensor | None = None, eps: Tensor | None = None
) -> Tensor:
    """c_S = (m_S o z, m_S), concatenated along channels: z (b t c h w) -> (b c+1 t h w).

    z: clean latents, of which only the context frames enter. mask (b t): m_S. alpha_tau (b,) and
    eps (like z): noise augmentation of the context at the noise level alpha_tau of each clip, or
    (b, t) of each frame.
    """
    if alpha_tau is None:
        level = z.new_ones(len(z), 1, 1, 1, 1)
    else:
        level = alpha_tau.to(z).view(len(z), -1, 1, 1, 1)                       # b (1 or t) 1 1 1
        # z_tau = alpha_tau z + sigma_tau eps, with sigma_tau = sqrt(1 - alpha_tau^2)
        z = level * z + (1 - level**2).sqrt() * eps
    mask = rearrange(mask.to(z), "b t -> b 1 t 1 1")
    # MINI: the mask itself states the noise level: it is alpha_tau, not 1, on a noisy context frame
    level = rearrange(level, "b t 1 1 1 -> b 1 t 1 1")
    mask_channel = (mask * level).expand(-1, -1, -1, *z.shape[3:])
    # c_S = (m_S o z, m_S)                                                     paper, section 3.2
    return torch.cat([mask * rearrange(z, "b t c h w -> b c t h w"), mask_channel], dim=1)


def linear_interpolation(x: Tensor) -> Tensor:
    """Linear interpolation in time from the first frame to the last one: (b t ...) -> like x."""
    share = torch.linspace(0, 1, x.shape[1], device=x.device, dtype=x.dtype)
    share = share.view(-1, *[1] * (x.ndim - 2))
    # x_0 + t / (T - 1) (x_{T-1} - x_0)
    return x[:, :1].lerp(x[:, -1:], share)


def anchored_denoiser(schedule: Schedule, denoise: Denoiser, known: Tensor) -> Denoiser:
    """A v-denoiser that is exact on the first and the last frame, which are known.

    denoise: predicts v (b t c h w) of a whole window. known (b t c h w): clean latents, of which
    only both end frames count. The error of the prediction at both ends, where v is known, is
    interpolated linearly in time and subtracted from all frames.
    """

    # MINI: not in the paper. The network only has to predict how frames depart from the linear
    # interpolation of the ends, and spends no capacity on copying the ends exactly

    def denoise_anchored(z: Tensor, tau: Tensor) -> Tensor:
        alpha_tau, sigma_tau = schedule.at(tau, z)
        y = denoise(z, tau)
        # z = alpha_tau x + sigma_tau eps and v = alpha_tau eps - sigma_tau x give
        # v = (alpha_tau z - x) / sigma_tau
        v = (alpha_tau * z - known) / sigma_tau
        return y - linear_interpolation(y - v)

    return denoise_anchored


class LearnedDownsampling(nn.Conv2d):
    """c_S at the resolution and width of a temporal layer (paper, Fig. 4): one for each layer.

    c_S (b context_channels t H W), height h, width w -> (b channels t h w).
    """

    # MINI: average pooling to the layer's resolution, then a 3x3 convolution whose output is added
    # to the layer's input. Without a bias, and with weights that start at zero, so that an
    # untrained c_S, a mask of zeros and no context at all give exactly the same output

    def __init__(self, context_channels: int, channels: int) -> None:
        super().__init__(context_channels, channels, 3, padding=1, bias=False)
        zero_init(self)

    def forward(self, c: Tensor, height: int, width: int) -> Tensor:
        frames = rearrange(c, "b c t h w -> (b t) c h w")
        small = super().forward(F.adaptive_avg_pool2d(frames, (height, width)))
        return rearrange(small, "(b t) c h w -> b c t h w", t=c.shape[2])


# --------------------------------------------------------------------------------------------------
# Windows: the frames that each call of a model is conditioned on and the frames that it generates.
# Pure functions of integers.

Window = tuple[list[int], list[int]]


def prediction_windows(frames: int, window: int, context: int = 2, done: int = 1) -> list[Window]:
    """The rollout of section 3.2 -> [(context frames, new frames)] of each call, frame numbers.

    frames: length of the video. window: frames of one call. The first `done` frames exist already
    and are the context of the first call (at most `context` of them); later calls take the last
    `context` frames. Context frames always exist, every other frame is generated exactly once and
    in order, and the last call may contribute fewer. Raises ValueError unless 1 <= context < window
    and done >= 1.
    """
    if not 1 <= context < window or done < 1:
        raise ValueError(
            f"a window of {window} frames can be given 1 to {window - 1} frames, "
            f"got {context} of {done}"
        )
    windows = []
    while done < frames:
        start = max(0, done - context)
        end = min(frames, start + window)
        windows.append((list(range(start, done)), list(range(done, end))))
        done = end
    return windows


def interpolation_windows(frames: int, factor: int = 4) -> list[Window]:
    """One pass of section 3.3 -> [(context frames, new frames)] of each call, frame numbers.

    Key frame k becomes frame factor * k, with factor - 1 new frames after it: n key frames become
    factor * (n - 1) + 1 frames. Raises ValueError for fewer than two frames or a factor below 2.
    """
    if frames < 2 or factor < 2:
        raise ValueError(
            f"interpolation needs two frames and a factor of at least 2, got {frames} and {factor}"
        )
    windows = []
    for start in range(0, factor * (frames - 1), factor):
        end = start + factor
        windows.append(([start, end], list(range(start + 1, end))))
    return windows


def tiles(size: int, tile: int, overlap: int) -> list[tuple[slice, slice]]:
    """Overlapping parts of a video's frames, or of one side of a frame -> [(input, kept)] slices.

    Every index lies in exactly one `kept` slice, of `tile` indices; `input` extends it by `overlap`
    on both sides, as far as there is any. Raises ValueError for a tile below 1 or an overlap
    below 0.
    """
    if tile < 1 or overlap < 0:
        raise ValueError(
            f"a part has at least one position or frame and no negative overlap, "
            f"got {tile} and {overlap}"
        )
    parts = []
    for start in range(0, size, tile):
        end = min(size, start + tile)
        extended = slice(max(0, start - overlap), min(size, end + overlap))
        parts.append((extended, slice(start, end)))
    return parts
