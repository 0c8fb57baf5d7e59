"""Generated clips of `actions`, for control-, motion- and memorisation-actions.

200 clips over the 28 combinations of person and action that the generator was trained on, 40 over
the 4 combinations held out from it (person 8, held out entirely, has no label to request), and
the 200 again at alpha = 1 from the same noise and labels: the image model, frame by frame. 100 of
the 200 without temporal guidance, as the paper samples. Three generation seeds, pooled. Nothing
is selected.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import samples
from vldm_mini.evaluation.samples import SEEDS
from vldm_mini.pipeline import VideoLDM

WEIGHTS = "actions"
FRAMES, STRIDE = 8, 3
TRAINED, HELD_OUT, UNGUIDED = 200, 40, 100
BATCH = 16

Pair = tuple[int, int]


@dataclass(frozen=True)
class Samples:
    """Generated videos uint8 (n t h w 3), their latents (n t c h w) in half precision; the
    requested actions and persons and the generation seed, each (n,)."""
    videos: Tensor
    latents: Tensor
    actions: Tensor
    persons: Tensor
    seeds: Tensor

    def float(self) -> Tensor:
        """Videos (n t 3 h w) in [-1, 1]."""
        return video.to_float(self.videos)


def combinations(held_out: bool) -> list[Pair]:
    """[(action, person)] that generators were trained on, or those held out (never person 8)."""
    pairs = [(action, person) for person in range(video.HELD_OUT_PERSON)
             for action in range(len(video.ACTIONS))]
    return [(action, person) for action, person in pairs
            if ((person, action) in video.HELD_OUT_PAIRS) == held_out]


def requests(n: int, held_out: bool,
             seeds: tuple[int, ...] = SEEDS) -> list[tuple[int, list[Pair]]]:
    """n requests divided among the seeds: [(seed, [(action, person), ...]), ...].

    All combinations are requested equally often, or once more or less.
    """
    pairs = combinations(held_out)
    all_requests = [pairs[i % len(pairs)] for i in range(n)]
    return [(seed, all_requests[k::len(seeds)]) for k, seed in enumerate(seeds)]


def generate(model: VideoLDM, n: int, held_out: bool = False, alpha: float | None = None,
             temporal_guidance: float | None = None) -> Samples:
    """Generate n clips. alpha: 1 for the image model; temporal_guidance: None as shipped."""
    parts = []
    for seed, pairs in requests(n, held_out):
        noise = model.noise(len(pairs), FRAMES, seed)
        labels = torch.cat([model.labels(action=action, person=person) for action, person in pairs])
        for k, some in enumerate(torch.arange(len(pairs)).split(BATCH)):
            # noise of later steps: another seed for each batch, the same for every model
            z = model.latents(labels[some], FRAMES, alpha, seed=100 * seed + k, noise=noise[some],
                              temporal_guidance=temporal_guidance)
            actions, persons = torch.tensor([pairs[i] for i in some]).T
            parts.append((samples.to_uint8(model.decode(z)), z.half().cpu(), actions, persons,
                          torch.full((len(some),), seed)))
            print(f"alpha {alpha}, seed {seed}: {int(some[-1]) + 1} of {len(pairs)} clips",
                  flush=True)
    return Samples(*(torch.cat(part) for part in zip(*parts)))


def kept_samples(model: VideoLDM, folder: str | Path, n: int, held_out: bool = False,
                 alpha: float | None = None, temporal_guidance: float | None = None) -> Samples:
    """As `generate`, or from runs/samples/ if these weights and settings were sampled before."""
    settings = dict(n=n, held_out=held_out, alpha=alpha, temporal_guidance=temporal_guidance)
    name = samples.key(folder, frames=FRAMES, **settings)
    return Samples(**samples.kept(name, lambda: dict(vars(generate(model, **settings)))))


def all_samples(name: str | None = None) -> tuple[VideoLDM, dict[str, Samples]]:
    """-> the VideoLDM, and its samples: "video" (200 clips), "held_out" (40), "image" (the 200 at
    alpha = 1), "unguided" (100)."""
    folder = weights.shipped(name or WEIGHTS)
    model = VideoLDM.from_pretrained(folder)
    return model, {"video": kept_samples(model, folder, TRAINED),
                   "held_out": kept_samples(model, folder, HELD_OUT, held_out=True),
                   "image": kept_samples(model, folder, TRAINED, alpha=1),
                   "unguided": kept_samples(model, folder, UNGUIDED, temporal_guidance=1)}


def settings(model: VideoLDM) -> dict:
    """How the clips were sampled, for the file of results."""
    config = model.config
    return {"generation_seeds": SEEDS, "frames": FRAMES, "stride": STRIDE,
            "ddim_steps": config.steps, "guidance": config.label_guidance,
            "temporal_guidance": config.temporal_guidance, "eta": config.eta}
