"""One training loop for every stage: mixed precision, EMA, checkpoints, resume, flight recorder. Knows no network.

What is trained, on what and with which loss stands in `recipes`. Chapter 03 walks it.

All randomness of training is a function of (seed, step, sample): a run that was killed and resumed, and two processes
in place of one, draw the same noise.
"""
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from vldm_mini import machine
from vldm_mini.weights import load_into, load_state, replacing, save_state, write_text

LEVELS = 10                                   # bins of tau in which the recorder keeps the loss


@dataclass(frozen=True)
class Settings:
    """How long and how. `lr` warms up linearly, then falls along a cosine to zero."""
    steps: int
    batch: int
    lr: float = 1e-3
    warmup: int = 50
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = ""                       # "fp32", "bf16", or "" for the faster one by a short timing
    save_every_s: float = 60.0


@dataclass(frozen=True)
class Objective:
    """A module and its loss. Each step, every objective takes one step; an autoencoder and its critic are two objectives.

    loss(step, samples) -> (scalar to minimise, {name: float, or "tau" and "loss": one value a sample}), or None to sit
    this step out. samples: list of sample numbers, to be used with `rng`.
    """
    name: str
    module: nn.Module
    loss: Callable
    lr_scale: float = 1.0
    betas: tuple = (0.9, 0.99)
    muon: bool = False                        # Muon for its matrices, AdamW for the rest; else AdamW for all


class Muon(torch.optim.Optimizer):
    """Momentum steps whose matrix is made orthogonal, so that no direction is much faster than the others.

    Jordan et al. 2024; the rate as of AdamW (Liu et al. 2025, arXiv 2502.16982). Any tensor counts as the matrix of its
    flatten(1), convolutions too. torch.optim.Muon does the same sums in bf16, 15 times slower where that is emulated.
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                mean = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                step = orthogonal(p.grad.lerp(mean, group["momentum"]).flatten(1))
                # 0.2 sqrt(longer side): the size of the steps of AdamW
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(0.2 * group["lr"] * max(step.shape) ** 0.5 * step.view_as(p))


def orthogonal(x, steps=5):
    """About the orthogonal matrix nearest to x (n, m): five Newton-Schulz steps bring singular values to 0.7 to 1.2."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, steps).T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def optimizers(objective):
    """The optimisers of a objective's trainable parameters. Muon is for hidden layers: both sides of the matrix >= 16."""
    ps = [p for p in objective.module.parameters() if p.requires_grad]
    wide = [p for p in ps if objective.muon and p.ndim > 1 and min(p.flatten(1).shape) >= 16]
    rest = [p for p in ps if not any(p is q for q in wide)]
    found = [torch.optim.AdamW(rest, lr=0.0, betas=objective.betas, weight_decay=0.01)]
    return [*found, Muon(wide, lr=0.0)] if wide else found


class EMA:
    """Exponential moving average of a module's parameters; diffusers' EMAModel does the same sums."""

    def __init__(self, module, decay):
        self.decay, self.count = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module):
        step, self.count = self.count, self.count + 1
        # decay_s = min((1 + s) / (10 + s), decay): short memory at first; the first step copies
        decay = min((1 + step) / (10 + step), self.decay) if step else 0.0
        for name, p in module.named_parameters():
            self.shadow[name].lerp_(p.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module):
        for name, p in module.named_parameters():
            p.copy_(self.shadow[name])


@dataclass
class Record:
    """The flight recorder: what was set, where it ran, and how it went, as one JSON file under 1 MB."""
    settings: dict = field(default_factory=dict)
    where: dict = field(default_factory=dict)
    rows: list = field(default_factory=list)           # every so many steps: step, minutes, losses, loss per level, ...
    strips: list = field(default_factory=list)         # names of the pictures made from the same noise
    minutes: float = 0.0

    def save(self, folder):
        write_text(Path(folder) / "record.json", json.dumps(asdict(self), indent=None) + "\n")

    @classmethod
    def load(cls, folder):
        path = Path(folder) / "record.json"
        if not path.is_file():
            raise FileNotFoundError(f"no record.json in {folder}; a finished or running training writes one")
        return cls(**json.loads(path.read_text()))


def provenance():
    """Commit, versions and hardware of this run."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                         cwd=Path(__file__).parent)
    return dict(commit=git.stdout.strip() or "unknown", torch=str(torch.__version__), python=platform.python_version(),
                device=str(machine.device()), threads=torch.get_num_threads(), processor=platform.machine())


def learning_rate(settings, step):
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def levels(tau, loss, num_steps=1000):
    """Mean loss in LEVELS bins of tau; None where a bin is empty. tau, loss (n,) -> list."""
    bins = (tau * LEVELS // num_steps).long()
    return [round(float(loss[bins == k].mean()), 5) if (bins == k).any() else None for k in range(LEVELS)]


def train(folder, settings, objectives, watch=None, strip=None, num_strips=12, resume=True, progress=True):
    """Train the objectives; returns the Record. The first objective's module ends with its EMA weights.

    folder: gets state.pt (tensors only), record.json and strips. watch() -> dict put into the record (alphas, say);
    strip() -> PIL image from fixed noise, at `num_strips` moments evenly spaced in log steps.
    A run killed at any moment goes on from its last checkpoint and ends in the same weights.
    """
    from tqdm.auto import tqdm
    run = _Run(Path(folder), settings, objectives, resume)
    moments = {round(math.exp(k / (num_strips - 1) * math.log(settings.steps))) for k in range(num_strips)}
    bar = tqdm(range(run.step, settings.steps), initial=run.step, total=settings.steps, mininterval=0.5,
               disable=not progress)
    recent, every, saved = [], max(1, settings.steps // 200), time.monotonic()
    for step in bar:
        recent.append(run.one_step(step))
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            run.note(step + 1, recent, watch)
            recent.clear()
            bar.set_postfix({k: f"{v:.4f}" for k, v in run.record.rows[-1]["losses"].items()})
        if strip and step + 1 in moments:
            run.draw(step + 1, strip)
        if not recent and time.monotonic() - saved > settings.save_every_s:
            run.save()
            saved = time.monotonic()
    run.save()
    run.ema.copy_to(objectives[0].module)
    return run.record


class _Run:
    """The state of a run: objectives, optimisers, EMA, record, step."""

    def __init__(self, folder, settings, objectives, resume):
        self.folder, self.settings, self.objectives, self.step = folder, settings, objectives, 0
        self.device = next(objectives[0].module.parameters()).device
        self.precision = settings.precision or machine.probe_precision(self.device)
        self.parameters = [[p for p in objective.module.parameters() if p.requires_grad] for objective in objectives]
        self.optimizers = [optimizers(objective) for objective in objectives]
        self.ema = EMA(objectives[0].module, settings.ema)
        self.record = Record(dict(asdict(settings), precision=self.precision), provenance())
        for part in folder.glob(".*.part"):                       # what a killed process was writing
            part.unlink()
        if resume and (folder / "state.pt").is_file():
            self.load()
        self.began = time.monotonic() - 60 * self.record.minutes

    def one_step(self, step):
        """Every objective's step. -> the logs of all objectives."""
        logs, samples = {}, list(range(self.settings.batch))
        for objective, ps, pair in zip(self.objectives, self.parameters, self.optimizers):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                answer = objective.loss(step, samples)
            if answer is None:
                continue
            loss, more = answer
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of {objective.name} is {loss.item()} at step {step}; the last "
                                         f"checkpoint in {self.folder} is whole. Try a smaller lr")
            objective.module.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(ps, self.settings.clip_norm)
            for optimizer in pair:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(self.settings, step) * objective.lr_scale
                optimizer.step()
            logs.update({objective.name: loss.item()}, **more)
        self.ema.update(self.objectives[0].module)
        self.step = step + 1
        return logs

    def note(self, step, recent, watch):
        """One row of the record: the mean of the logs since the last row, the loss per noise level."""
        names = {k for logs in recent for k, v in logs.items() if isinstance(v, float)}
        mean = lambda k: sum(vs := [logs[k] for logs in recent if k in logs]) / len(vs)                  # noqa: E731
        row = dict(step=step, minutes=round((time.monotonic() - self.began) / 60, 2),
                   losses={k: round(mean(k), 5) for k in sorted(names)})
        if "tau" in recent[0]:
            row["levels"] = levels(*(torch.cat([logs[k].detach().cpu() for logs in recent]) for k in ("tau", "loss")))
        self.record.rows.append(dict(row, **(watch() if watch else {})))

    def draw(self, step, strip):
        """A film strip from the EMA weights and always the same noise."""
        module, name = self.objectives[0].module, f"strip_{step:06d}.webp"
        kept = {k: p.detach().clone() for k, p in module.named_parameters()}
        self.ema.copy_to(module)
        with replacing(self.folder / name) as beside:
            strip().save(beside, format="WEBP", quality=80)
        with torch.no_grad():
            for k, p in module.named_parameters():
                p.copy_(kept[k])
        self.record.strips = sorted({*self.record.strips, name})

    def save(self):
        """Everything a resumed run needs, written beside and renamed."""
        self.record.minutes = round((time.monotonic() - self.began) / 60, 3)
        state = dict(step=self.step, modules=[objective.module.state_dict() for objective in self.objectives],
                     optimizers=[optimizer.state_dict() for pair in self.optimizers for optimizer in pair],
                     ema=dict(shadow=self.ema.shadow, count=self.ema.count), record=asdict(self.record),
                     settings=asdict(self.settings))
        save_state(self.folder / "state.pt", state)
        self.record.save(self.folder)

    def load(self):
        state = load_state(self.folder / "state.pt", self.device)
        if state["settings"] != asdict(self.settings):
            changed = [k for k, v in asdict(self.settings).items() if state["settings"].get(k) != v]
            raise ValueError(f"{self.folder} holds a run with other settings ({', '.join(changed)}); "
                             "give another --out, or --no-resume to start anew")
        for objective, tensors in zip(self.objectives, state["modules"]):
            load_into(objective.module, tensors, str(self.folder))
        for optimizer, values in zip([o for pair in self.optimizers for o in pair], state["optimizers"]):
            optimizer.load_state_dict(values)
        self.ema.shadow, self.ema.count = state["ema"]["shadow"], state["ema"]["count"]
        self.record, self.step = Record(**state["record"]), state["step"]
