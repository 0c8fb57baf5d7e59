"""What every stage shares: what is asked for, what a stage prepares, running it, its model card."""
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ... import machine, weights
from ...autoencoder import Autoencoder
from ...datasets import video
from ...diffusion import ddim, ddim_times, denoising_error
from ...temporal import TemporalLayers
from ...unet import UNet
from ..data import Latents, cached_latents, is_packed, load_clips
from ..loop import Objective, Run, Settings, Watch, train
from ..record import LEVELS, Record
from ..sizes import Size, size_of

if TYPE_CHECKING:
    from PIL import Image

# MINI: weights of diffusion models are kept in 8 bits (weights.packed)
STORED_AS = torch.int8
TIMED_STEPS = 6            # steps of a throw-away run from which minutes become steps


@dataclass(frozen=True)
class Request:
    """What the command line asks for. None: as the size has it."""
    data: str = "actions"
    size: str = "s"
    out: Path = Path("runs/actions-s")
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None              # in place of steps, for the stage as a whole
    lr: float | None = None
    batch: int | None = None
    frames: int | None = None
    accumulate: int | None = None
    precision: str = ""
    channels_last: bool = False
    compile: bool = False
    start: Path | None = None                 # weights of this stage to go on from
    resume: bool = True
    progress: bool = True

    @property
    def dial(self) -> Size:
        """The Size, with the number of frames that was asked for."""
        size = size_of(self.size, self.data)
        return replace(size, frames=self.frames) if self.frames else size

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its weights and its run."""
        return Path(self.out) / stage

    def settings(self, stage: str) -> Settings:
        """The Settings of a stage, with what was asked for in place of the size's."""
        asked = dict(steps=self.steps, lr=self.lr, batch=self.batch, accumulate=self.accumulate)
        asked = {name: value for name, value in asked.items() if value is not None}
        return replace(self.dial.settings(stage), seed=self.seed, precision=self.precision,
                       channels_last=self.channels_last, compile=self.compile, **asked)


@dataclass(frozen=True)
class Job:
    """A stage, ready to train.

    build() -> fresh objectives, the same at every call. finish(objectives, record) saves weights.
    identity: what a run must not be resumed without (see loop.train).
    """
    name: str                                 # folder of the run below Request.out
    settings: Settings
    build: Callable[[], list[Objective]]
    finish: Callable[[list[Objective], Record], None]
    identity: dict = field(default_factory=dict)
    watch: Callable[[list[Objective]], Watch] = lambda objectives: Watch()


def run_job(request: Request, job: Job, deadline: float | None = None) -> Record:
    """Train a job and save its weights. deadline: time.monotonic() at which it should be done.

    The number of steps that a deadline leaves is measured once and kept in the run's folder, so
    that a resumed run knows it.
    """
    folder = request.folder(job.name)
    settings = job.settings
    if deadline is not None:
        settings = replace(settings, steps=planned_steps(folder, job, deadline, request.resume))
    objectives = job.build()
    record = train(folder, settings, objectives, job.watch(objectives), request.resume,
                   request.progress, job.identity)
    job.finish(objectives, record)
    return record


def planned_steps(folder: Path, job: Job, deadline: float, resume: bool) -> int:
    """How many steps fit before the deadline; measured once, then read from folder/steps.json."""
    path = folder / "steps.json"
    if resume and path.is_file():
        return int(weights.read_json(path)["steps"])
    cost = cost_of_a_step(job)
    # the rest is for strips, held-out figures and checkpoints
    left = 0.93 * (deadline - time.monotonic())
    steps = max(2, int(left / cost["seconds"]))
    write_json(path, dict(steps=steps, **cost))
    return steps


def write_json(path: Path, values: dict) -> None:
    """Write a small JSON file, whole or not at all."""
    weights.write_text(path, json.dumps(values, indent=1) + "\n")


def cost_of_a_step(job: Job) -> dict:
    """{"seconds", "gflop", "peak_memory_mb"} of a step, from a throw-away run that leaves nothing.

    gflop: forward and backward, as torch counts products and convolutions. The memory is CUDA's.
    """
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), replace(job.settings, steps=10 ** 6), job.build(), False, {})
        # the second half of a run, where a critic has joined
        steps = iter(range(10 ** 6 - 100, 10 ** 6))
        with FlopCounterMode(display=False) as counter:
            run.one_step(next(steps))
        run.one_step(next(steps))
        machine.synchronize(run.device)
        began = time.perf_counter()
        for _ in range(TIMED_STEPS):
            run.one_step(next(steps))
        machine.synchronize(run.device)
        seconds = (time.perf_counter() - began) / TIMED_STEPS
    cuda = run.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() / 2 ** 20 if cuda else 0
    return dict(seconds=round(seconds, 6), gflop=round(counter.get_total_flops() / 1e9, 3),
                peak_memory_mb=round(memory))


# --------------------------------------------------------------------------------------------------
# What diffusion stages read and look at.

def latents_of(request: Request) -> tuple[Latents, Latents]:
    """Latents to train on and held-out ones, encoded by the run's autoencoder."""
    clips, held_out = load_clips(request.data, request.dial)
    train_latents = cached_latents(request.data, request.out, clips, held_out)
    held_latents = cached_latents(request.data, request.out, held_out or clips[:1], clips)
    return train_latents, held_latents


def image_backbone(request: Request) -> UNet:
    """The trained theta of the run, frozen. Raises FileNotFoundError where there is none."""
    folder = request.folder("image")
    if not (folder / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no image model in {request.out}; first: python -m vldm_mini "
                                f"train image --data {request.data}")
    return UNet.from_pretrained(folder).to(machine.device()).requires_grad_(False)


def alphas_row(layers: TemporalLayers) -> Callable[[], dict]:
    """The alpha of every temporal layer, for a row of the record."""
    return lambda: dict(alpha={name: round(value, 4) for name, value in layers.alphas().items()})


def held_out_error(model: nn.Module, latents: Latents, frames: int, stride: int,
                   clips: int = 48, batch: int = 12) -> Callable[[], dict]:
    """validate() -> {"levels": mean held-out error of each noise level}: fixed clips and noise.

    Labels that training never saw are given as the null label.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    span = video.span(frames, stride)
    usable = [i for i, clip in enumerate(latents.clips) if len(clip) >= span]
    chosen = [usable[i % len(usable)] for i in range(clips)]
    starts = [int(torch.randint(len(latents.clips[i]) - span + 1, (1,), generator=generator))
              for i in chosen]
    z = torch.stack([latents.clips[i][at:at + span:stride] for i, at in zip(chosen, starts)])
    z = z.float()
    eps = torch.randn(z.shape, generator=generator)
    if frames == 1:
        z, eps = z[:, 0], eps[:, 0]

    @torch.no_grad()
    def validate() -> dict:
        levels = []
        for level in range(LEVELS):
            tau_value = int((level + 0.5) / LEVELS * model.schedule.num_steps)
            errors = []
            for part, noise in zip(z.split(batch), eps.split(batch)):
                part, noise = part.to(device), noise.to(device)
                tau = torch.full((len(part),), tau_value, device=device)
                error = denoising_error(model.schedule, model, part, tau, noise, model.prediction)
                errors.append(error.square().mean())
            levels.append(round(float(torch.stack(errors).mean()), 5))
        return dict(levels=levels)
    return validate


@torch.no_grad()
def noise_strip(model: nn.Module, latents: Latents, out: Path, frames: int, rows: int = 4,
                steps: int = 10) -> Callable | None:
    """The recorder's picture: the same noise and labels at every call, a row for each label.

    None on a machine without Pillow: the run then keeps no strips.
    """
    if find_spec("PIL") is None:
        return None
    device = next(model.parameters()).device
    decoder = Autoencoder.from_pretrained(Path(out) / "autoencoder").to(device)
    generator = torch.Generator().manual_seed(0)
    columns = 8 if frames == 1 else frames
    labels = latents.labels[torch.linspace(0, len(latents.labels) - 1, rows).long()].to(device)
    labels = labels if labels.ndim == 2 else labels[:, 0]
    noise = torch.randn(rows, columns, *latents.clips[0].shape[1:], generator=generator).to(device)
    if frames == 1:
        noise = rearrange(noise, "r k c h w -> (r k) c h w")
        labels = labels.repeat_interleave(columns, 0)

    @torch.no_grad()
    def picture() -> "Image.Image":
        from PIL import Image

        def denoise(z: Tensor, tau: Tensor) -> Tensor:
            return model(z, tau, labels=labels)
        z = ddim(model.schedule, denoise, noise, ddim_times(steps), model.prediction)
        x = decoder.decode(z.reshape(-1, *z.shape[-3:])).clamp(-1, 1)
        x = (x * 127.5 + 127.5).round().byte().cpu()
        return Image.fromarray(rearrange(x, "(r k) c h w -> (r h) (k w) c", r=rows).numpy())
    return picture


# --------------------------------------------------------------------------------------------------
# The model card.

def card(what: str, request: Request, record: Record, figures: dict | None = None) -> str:
    """What the weights are, data, licence, recipe, minutes, hardware, figures."""
    where, settings = record.where, record.settings
    losses = record.rows[-1]["losses"] if record.rows else {}
    shown = {f"training loss, {name}": value for name, value in losses.items()} | (figures or {})
    entry = video.catalogue().get(request.data)
    if entry:
        terms = f"{entry.title}. {entry.terms} Cite: {'; '.join(entry.cite)}"
    elif request.data == "driving":
        terms = "rendered by this package"
    else:
        terms = "the reader's own clips"
    name = Path(request.data).name if is_packed(request.data) else request.data
    lines = [
        f"# vldm_mini: {what}, {name}, size {request.size}", "",
        f"Trained on: {name} ({terms})", "",
        "Licence of these weights: Apache-2.0 where the data's terms allow it; "
        "trained on `actions` they are for research and teaching, as the data is.", "",
        f"Recipe: `python -m vldm_mini train {what.split()[0]} --data {name} "
        f"--size {request.size}`, seed {settings.get('seed')}, {settings.get('steps')} steps "
        f"of batch {settings.get('batch')}, {settings.get('precision')}.", "",
        f"Took {record.minutes:.1f} minutes ({record.process_minutes:.1f} of processor time) on "
        f"{where.get('threads')} threads of {where.get('device')} ({where.get('processor')}), "
        f"torch {where.get('torch')}, commit {where.get('commit')}.", "",
        *[f"- {name}: {value}" for name, value in shown.items()], ""]
    return "\n".join(lines)
