"""Clips that need no file: a bright square that circles; its speed is the action, its shade the
person."""
import math

import torch

from vldm_mini.datasets import video


def seeded(seed: int = 0) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal."""
    return torch.randn(*shape, generator=seeded(seed))


def circling_clip(action: int, person: int, t: int = 60, seed: int = 0,
                  mirror: bool = False) -> video.VideoClip:
    """t frames of 64x64."""
    frames = torch.full((t, 64, 64, 3), 20 * person, dtype=torch.uint8)
    for i in range(t):
        angle = (0.08 + 0.04 * action) * i + seed
        y, x = int(32 + 20 * math.sin(angle)), int(32 + 20 * math.cos(angle))
        frames[i, y - 6:y + 6, x - 6:x + 6] = 255
    frames = frames.flip(2) if mirror else frames
    return video.VideoClip(f"{action}-{person}-{mirror}", frames,
                           {"action": action, "person": person},
                           group=f"{action}-{person}", mirror=mirror)
