"""The films that control-, motion- and memorisation-actions share: generated once and kept in runs/samples/.

200 clips over the 28 combinations of person and action that the generator was trained on, 40 over the 4 that it never
saw (person 8, whom it never saw at all, cannot be asked for), and the 200 again at alpha = 1 from the same noise and
labels: the image model, frame by frame. 100 of the 200 without temporal guidance, as the paper samples. Three
generation seeds, pooled and listed. Nothing is picked: clip i of a seed is the i-th asked for.
"""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.pipeline import VideoLDM

WEIGHTS = "actions"
ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs"
SEEDS = (0, 1, 2)
FRAMES, STRIDE = 8, 3
STEPS, SCALE = None, None                     # MINI: DDIM steps and guidance as shipped; the cost is in proportion
TRAINED, HELD_OUT, UNGUIDED = 200, 40, 100
BATCH = 16


@dataclass(frozen=True)
class Samples:
    """Generated films uint8 (n t h w 3), their latents (n t c h w) in half precision, what was asked for, the seed."""
    films: torch.Tensor
    latents: torch.Tensor
    actions: torch.Tensor
    persons: torch.Tensor
    seeds: torch.Tensor

    def float(self):
        """Films (n t 3 h w) in [-1, 1]."""
        return video.to_float(self.films)


def combinations(held_out):
    """[(action, person)]: those that generators were trained on, or were not (person 8 is in neither)."""
    pairs = [(action, person) for person in range(video.HELD_OUT_PERSON) for action in range(len(video.ACTIONS))]
    return [(a, p) for a, p in pairs if ((p, a) in video.HELD_OUT_PAIRS) == held_out]


def requests(n, held_out, seeds=SEEDS):
    """n requests, dealt to the seeds: [(seed, [(action, person), ...]), ...]; combinations come round equally often."""
    asked = combinations(held_out)
    return [(seed, [asked[i % len(asked)] for i in range(n)][k::len(seeds)]) for k, seed in enumerate(seeds)]


def make(model, n, held_out=False, alpha=None, motion=None):
    """Generate n clips with a VideoLDM (or what behaves like one) -> Samples."""
    parts = []
    for seed, asked in requests(n, held_out):
        noise = model.noise(len(asked), FRAMES, seed)
        labels = torch.cat([model.labels(action=action, person=person) for action, person in asked])
        for k, some in enumerate(torch.arange(len(asked)).split(BATCH)):
            # the noise of later steps: another seed for each batch, the same for every model
            z = model.latents(labels[some], FRAMES, alpha, 100 * seed + k, STEPS, SCALE, noise[some],
                              temporal_guidance=motion)
            films = (model.decode(z) * 127.5 + 127.5).round().clamp(0, 255).byte()
            words = torch.tensor([asked[i] for i in some])
            parts.append((films.movedim(2, -1).cpu(), z.half().cpu(), *words.T, torch.full((len(some),), seed)))
            print(f"alpha {alpha}, seed {seed}: {int(some[-1]) + 1} of {len(asked)} clips", flush=True)
    return Samples(*(torch.cat(part) for part in zip(*parts)))


# the stages that films of `generate` are made by
STAGES = ("autoencoder", "image", "temporal", "boxes", "decoder")


def key(folder, stages=STAGES, **settings):
    """A name for what the weights of these stages and these settings give: 16 hexadecimal digits."""
    files = sorted(file for file in Path(folder).rglob("*") if file.name in (weights.WEIGHTS, weights.CONFIG))
    files = [file for file in files if file.parent.relative_to(folder).as_posix() in (".", *stages)]
    asked = [(str(file.relative_to(folder)), weights.sha256(file)) for file in files]
    text = json.dumps([asked, SEEDS, FRAMES, STEPS, SCALE, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def samples(model, folder, n, held_out=False, alpha=None, motion=None):
    """As `make`, from runs/samples/ if it was made before with the same weights and settings."""
    path = RUNS / "samples" / f"{key(folder, n=n, held_out=held_out, alpha=alpha, motion=motion)}.safetensors"
    if path.is_file():
        return Samples(**weights.load_tensors(path))
    made = make(model, n, held_out, alpha, motion)
    weights.save_tensors(path, {name: tensor.clone() for name, tensor in vars(made).items()})
    return made


def all_samples(name=None):
    """-> the VideoLDM, {"video": 200 clips, "held_out": 40, "image": the 200 at alpha = 1, "unguided": 100}."""
    folder = weights.shipped(name or WEIGHTS)
    model = VideoLDM.from_pretrained(folder)
    return model, {"video": samples(model, folder, TRAINED),
                   "held_out": samples(model, folder, HELD_OUT, held_out=True),
                   "image": samples(model, folder, TRAINED, alpha=1),
                   "unguided": samples(model, folder, UNGUIDED, motion=1)}


def settings(model):
    """What the films were made with, for the result's file."""
    return {"generation_seeds": SEEDS, "frames": FRAMES, "stride": STRIDE, "ddim_steps": STEPS or model.config.steps,
            "guidance": model.config.label_guidance if SCALE is None else SCALE,
            "temporal_guidance": model.config.temporal_guidance, "eta": model.config.eta}
