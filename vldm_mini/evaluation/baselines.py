"""Baselines derived from real videos: shuffled, frozen, stuttering, backwards.

A measure of video must tell them from real videos (but for `backwards`, which some pass by design).
"""
import torch
from torch import Tensor


def shuffled_order(n: int, generator: torch.Generator) -> Tensor:
    """A random order of n >= 3 frames, never the right one and never its reverse. (n,) long."""
    forward = torch.arange(n)
    while True:
        order = torch.randperm(n, generator=generator)
        if not torch.equal(order, forward) and not torch.equal(order, forward.flip(0)):
            return order


def baselines(videos: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Videos (n t c h w) -> {name: (n t c h w)}.

    shuffled: in another order; freeze: the first frame throughout; stutter: frames sampled with
    replacement, in order; backwards: reversed in time.
    """
    n, t = videos.shape[:2]
    each = torch.arange(n)[:, None]
    orders = torch.stack([shuffled_order(t, generator) for _ in range(n)])      # n t
    repeated = torch.randint(t, (n, t), generator=generator).sort(1).values     # n t
    return {"shuffled": videos[each, orders], "freeze": videos[:, :1].expand_as(videos),
            "stutter": videos[each, repeated], "backwards": videos.flip(1)}


def blurred_in_time(videos: Tensor, share: float = 0.25) -> Tensor:
    """Each frame mixed with a `share` of each neighbour: what a measure of flicker alone rewards.

    (n t c h w) -> the same shape; the first and last frame count as their own neighbours.
    """
    before = torch.cat([videos[:, :1], videos[:, :-1]], dim=1)
    after = torch.cat([videos[:, 1:], videos[:, -1:]], dim=1)
    return (1 - 2 * share) * videos + share * (before + after)
