"""The objectives of diffusion training: eq. (1) on frames, eq. (2) on clips, eq. (3) with context.

Chapters 03, 04, 06 and 07 walk through them. What the paper does is the default; what we added to
make small models look good is an option of LossOptions, marked MINI, and switched on by `stages`.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..context import context_condition, context_mask, linear_interpolation
from ..diffusion import Schedule, add_noise, denoising_error, to_x0
from ..temporal import VideoModel
from .data import FrameStore, Latents, Windows
from .randomness import BatchRandom

SQUARE = 4                 # side of the squares that a coarse error is averaged over


@dataclass(frozen=True)
class LossOptions:
    """How a diffusion loss is weighed. The defaults are the paper's."""
    label_drop: float = 0.1               # paper, appendix: each label is dropped one time in ten
    # MINI: (middle, spread) of a logit-normal tau in place of U{0, 1000} (Esser et al. 2024)
    tau: tuple[float, float] | None = None
    # MINI: sample i's tau from the i-th of as many equally likely parts: every batch has all levels
    stratified: bool = False
    # MINI: weight of the temporal-difference error beside eq. (2)
    temporal_difference: float = 0.0
    # MINI: only the departure from the linear interpolation of its two ends is to be predicted
    anchored: bool = False
    regime_weights: tuple[float, ...] = ()    # MINI: one weight for each regime of interpolation


ContextMaker = Callable[[Tensor, Windows, BatchRandom], dict]


def draw_tau(draw: BatchRandom, num_steps: int, options: LossOptions) -> Tensor:
    """One tau a sample, (b,) long: uniform over 0..num_steps - 1 (paper), or as the options say.

    Logit-normal: tau = num_steps sigmoid(middle + spread n), n standard normal.
    """
    u = draw.uniform()
    if options.stratified:
        u = (u + draw.index) / draw.batch
    if options.tau is None:
        share = u
    else:
        middle, spread = options.tau
        # in float64: float32 knows no number between 1 - 6e-8 and 1
        normal = torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7)).float()
        share = torch.sigmoid(middle + spread * normal)
    return (num_steps * share).long().clamp(max=num_steps - 1)


def drop_labels(labels: Tensor, classes: tuple[int, ...], draw: BatchRandom, p: float) -> Tensor:
    """Each label (b, n) becomes its null label with probability p, for classifier-free guidance."""
    if not classes:
        return labels
    null = torch.tensor(classes, dtype=torch.long).to(labels.device, non_blocking=True)
    return torch.where(draw.uniform(len(classes)) < p, null, labels)


def temporal_difference_error(error: Tensor) -> Tensor:
    """How much the error of a clip, averaged over squares of 4x4, changes from frame to frame.

    (b t c h w) -> (b,): the mean square. MINI: a video may be right in every detail and still
    flicker as a whole; that error is so small a part of eq. (2) that it would be learnt last.
    """
    side = min(SQUARE, *error.shape[3:])
    coarse = F.avg_pool2d(rearrange(error, "b t c h w -> (b t) c h w"), side)
    coarse = rearrange(coarse, "(b t) c h w -> b t c h w", b=len(error))
    return coarse.diff(dim=1).square().flatten(1).mean(1)


def diffusion_loss(model: torch.nn.Module, latents: Latents, frames: int, stride: int,
                   schedule: Schedule, prediction: str = "v", options: LossOptions = LossOptions(),
                   context: ContextMaker | None = None) -> Callable:
    """The loss of an Objective: eq. (1) for frames = 1, eq. (2) for a video model and frames = T.

    context(z, windows, draw) -> what the model is conditioned on beside labels: c_S and a regime of
    eq. (3), or a box map.
    """
    device = next(model.parameters()).device
    store = FrameStore(latents.clips, device, frames, stride, latents.names or None)
    all_labels = latents.frame_labels().to(device)

    def loss(draw: BatchRandom) -> tuple[Tensor, dict]:
        windows = store.windows(draw)
        z = store.at(windows).float()                                                # b t c h w
        # the label of a clip is the mean of its frames', rounded
        labels = all_labels[windows.frames].mean(1).round().long()
        labels = drop_labels(labels, latents.classes, draw, options.label_drop)
        if frames == 1:
            z = z[:, 0]
        tau = draw_tau(draw, schedule.num_steps, options)
        eps = draw.normal(*z.shape[1:])
        conditions = context(z, windows, draw) if context else {}

        def denoise(noisy: Tensor, tau: Tensor) -> Tensor:
            return model(noisy, tau, labels=labels, **conditions)
        error = denoising_error(schedule, denoise, z, tau, eps, prediction)
        per_sample = weighed_error(error, conditions.get("regime"), options)
        plain = error.detach().square().flatten(1).mean(1)
        return per_sample.mean(), dict(tau=tau, loss=plain)
    return loss


def weighed_error(error: Tensor, regime: Tensor | None, options: LossOptions) -> Tensor:
    """|| y - f ||^2 of each sample and the terms that the options add. error (b ...) -> (b,)."""
    if options.anchored:
        error = error - linear_interpolation(error)
    per_sample = error.square().flatten(1).mean(1)
    if options.temporal_difference:
        extra = temporal_difference_error(error)
        per_sample = per_sample + options.temporal_difference * extra
    if options.regime_weights:
        weight = torch.tensor(options.regime_weights).to(error.device, non_blocking=True)
        per_sample = weight[regime] * per_sample
    return per_sample


# --------------------------------------------------------------------------------------------------
# Context frames (section 3.2, 3.3).

@dataclass(frozen=True)
class ContextOptions:
    """Which frames are given in training, and how. The paper gives neither p_S nor noise levels."""
    # MINI: p_S, how often S = 0, 1, 2 frames are given
    odds: tuple[float, ...] = (0.2, 0.25, 0.55)
    # MINI: share of clips whose context carries noise, of a tau up to max_tau
    noisy_share: float = 0.25
    max_tau: int = 250
    # MINI: a noise level for each context frame in place of one for the clip, as in diffusion
    # forcing (Chen et al. 2024, arXiv 2407.01392)
    per_frame: bool = False
    # MINI: share of clips whose context is predicted by the model itself from noise of a tau up to
    # self_generated_tau, in one step: in a long rollout its context is its own output
    self_generated: float = 0.0
    self_generated_tau: int = 500


def noisy_context(z: Tensor, mask: Tensor, draw: BatchRandom, schedule: Schedule,
                  options: ContextOptions) -> Tensor:
    """c_S = (m_S o z, m_S) with noise augmentation. z (b t c h w), mask (b t) -> (b c+1 t h w)."""
    shape = z.shape[1:2] if options.per_frame else ()
    tau = draw.integers(options.max_tau, *shape) + 1                              # b, or b t
    alpha_tau = schedule.at(tau, tau.flatten().float())[0].view_as(tau)
    clean = draw.uniform(*shape) >= options.noisy_share
    signal = torch.where(clean, 1.0, alpha_tau)
    return context_condition(z, mask, signal, draw.normal(*z.shape[1:]))


def self_generated_context(model: VideoModel, z: Tensor, draw: BatchRandom, schedule: Schedule,
                           prediction: str, options: ContextOptions, first: int = 4) -> Tensor:
    """z (b t c h w), the first frames of some clips as the model itself predicts them from noise.

    Which clips: every n-th of the batch, so that their share is `self_generated`.
    """
    every = round(1 / options.self_generated)
    offset = -draw.rows.start % every
    tau = draw.integers(options.self_generated_tau)
    eps = draw.normal(first, *z.shape[2:])
    tau, eps = tau[offset::every], eps[offset::every]
    noisy = add_noise(schedule, z[offset::every, :first], eps, tau)
    with torch.no_grad():
        own = to_x0(schedule, noisy, model(noisy, tau), tau, prediction)
    z = z.clone()
    z[offset::every, :first] = own.to(z.dtype)
    return z


def prediction_context(model: VideoModel, schedule: Schedule, prediction: str,
                       options: ContextOptions) -> ContextMaker:
    """c_S of eq. (3) with S = 0, 1 or 2 first frames given, S ~ p_S."""
    def context(z: Tensor, windows: Windows, draw: BatchRandom) -> dict:
        edges = torch.tensor(options.odds).cumsum(0)[:-1].to(z.device, non_blocking=True)
        given = (draw.uniform()[:, None] >= edges).sum(1)
        mask = (torch.arange(z.shape[1], device=z.device) < given[:, None]).to(z)
        if options.self_generated:
            z = self_generated_context(model, z, draw, schedule, prediction, options)
        return dict(context=noisy_context(z, mask, draw, schedule, options))
    return context


def interpolation_context(schedule: Schedule, options: ContextOptions) -> ContextMaker:
    """c_S of eq. (3) with the first and the last frame given; the regime is the clip's parity."""
    def context(z: Tensor, windows: Windows, draw: BatchRandom) -> dict:
        mask = context_mask(z.shape[1], 1, 1).to(z.device, non_blocking=True)
        mask = mask.expand(len(z), -1)
        c = noisy_context(z, mask, draw, schedule, options)
        return dict(context=c, regime=windows.clip % 2)
    return context


def box_condition(maps: Tensor, drop: float) -> ContextMaker:
    """The box map of each frame; zeros, "no boxes given", with probability drop.

    maps (frames 4 h w): of all frames in a row.
    """
    def context(z: Tensor, windows: Windows, draw: BatchRandom) -> dict:
        given = draw.uniform() >= drop
        return dict(concat=maps[windows.frames[:, 0]].float() * given[:, None, None, None])
    return context
