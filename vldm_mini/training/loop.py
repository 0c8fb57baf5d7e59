"""One training loop for every stage: number format, EMA, checkpoints, resuming, record.

It knows no network. What is trained, on what and with which loss stands in `stages` and `losses`;
chapter 03 walks through it. The loop never waits for the device but at its logging steps, some 200
in a run: losses and gradient norms stay on the device until then.
"""
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import machine
from ..weights import load_into, load_state, locked, replacing, save_state, writable
from .optimizers import EMA, learning_rate, make_optimizers
from .randomness import BatchRandom
from .record import LEVELS, Record, provenance

STATE = "state.safetensors"


@dataclass(frozen=True)
class Settings:
    """How long and how. `lr` warms up linearly, then falls along a cosine to zero.

    batch: samples of a step, over all processes and all accumulated parts. precision: "fp32",
    "bf16", or "" for the faster one here (a short timing). accumulate: forward and backward passes
    a step.
    """
    steps: int
    batch: int
    lr: float = 1e-3
    warmup: int = 50
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = ""
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False
    save_every_s: float = 120.0


@dataclass(frozen=True)
class Objective:
    """A module and its loss. Each step, every objective takes one optimiser step, in their order;
    an autoencoder and its critic are two objectives.

    loss(draw) -> (scalar to minimise, {name: scalar tensor, or "tau" and "loss": one value a
    sample}), or None to leave this step out. draw: the step's BatchRandom.
    """
    name: str
    module: nn.Module
    loss: Callable[[BatchRandom], tuple[Tensor, dict] | None]
    lr_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    muon: bool = False                        # MINI: Muon for hidden matrices, AdamW for the rest


@dataclass(frozen=True)
class Watch:
    """What a run is to look at beside its losses.

    row() -> dict for each row of the record (alphas, say); strip() -> PIL image from fixed noise,
    at `num_strips` moments evenly spaced in log steps; validate() -> dict of held-out figures, at
    `num_validations` moments evenly spaced. strip and validate see the averaged (EMA) weights.
    """
    row: Callable[[], dict] | None = None
    strip: Callable | None = None
    validate: Callable[[], dict] | None = None
    num_strips: int = 12
    num_validations: int = 24


def train(folder: str | Path, settings: Settings, objectives: list[Objective],
          watch: Watch | None = None, resume: bool = True, progress: bool = True,
          identity: dict | None = None) -> Record:
    """Train the objectives; returns the Record. The first module ends with its EMA weights.

    folder: gets the run's state, record.json and strips. identity: what a run must not be resumed
    without, {"data": fingerprint, "layers": hash}, say. A run that was killed at any moment goes on
    from its last checkpoint and ends in the same weights. Raises ValueError for a folder that holds
    another run, FloatingPointError for a gradient that is not finite.
    """
    folder, watch = writable(folder), watch or Watch()
    # one process writes; the others of a group only compute
    with locked(folder) if process_rank() == 0 else nullcontext():
        run = Run(folder, settings, objectives, resume, identity or {})
        strips, validations = set(), set()
        if watch.strip:
            strips = log_spaced(settings.steps, watch.num_strips)
        if watch.validate:
            validations = evenly_spaced(settings.steps, watch.num_validations)
        every, saved = max(1, settings.steps // 200), time.monotonic()
        bar = progress_bar(range(run.step, settings.steps), progress and run.rank == 0)
        for step in bar:
            run.one_step(step)
            done = step + 1
            if done in strips:
                run.draw_strip(watch.strip)
            if done % every and done != settings.steps:
                continue
            run.note(watch, validate=bool(validations & set(range(done - every + 1, done + 1))))
            if hasattr(bar, "set_postfix"):
                losses = run.record.rows[-1]["losses"]
                bar.set_postfix({name: f"{loss:.4f}" for name, loss in losses.items()})
            if time.monotonic() - saved > settings.save_every_s:
                run.save()
                saved = time.monotonic()
        run.save()
        run.ema.copy_to(objectives[0].module)
    return run.record


def progress_bar(steps: range, shown: bool) -> Iterable[int]:
    """The steps with tqdm's bar around them, or alone: not shown, or tqdm is not installed."""
    if not shown or find_spec("tqdm") is None:
        return steps
    from tqdm.auto import tqdm
    return tqdm(steps, initial=steps.start, total=steps.stop, mininterval=0.5)


def log_spaced(steps: int, number: int) -> set[int]:
    """`number` moments from 1 to steps, evenly spaced in the logarithm."""
    return {round(math.exp(k / (number - 1) * math.log(steps))) for k in range(number)}


def evenly_spaced(steps: int, number: int) -> set[int]:
    """`number` moments from steps / number to steps."""
    return {round(steps * (k + 1) / number) for k in range(number)}


def mean_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in place; nothing where there is one."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def world_size() -> int:
    """How many processes train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def process_rank() -> int:
    """The number of this process among those that train together."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


@dataclass
class Totals:
    """Sums since the last row of the record, on the device."""
    losses: dict = field(default_factory=dict)            # name -> [sum, number of steps]
    level_sum: Tensor | None = None
    level_count: Tensor | None = None

    def add(self, name: str, value: Tensor) -> None:
        """One more value of a loss."""
        value = value.detach().float()
        if name in self.losses:
            total, count = self.losses[name]
            self.losses[name] = [total + value, count + 1]
        else:
            self.losses[name] = [value, 1]

    def add_levels(self, tau: Tensor, loss: Tensor, num_steps: int = 1000) -> None:
        """One value a sample, sorted into LEVELS bins of tau. tau, loss (b,)."""
        if self.level_sum is None:
            self.level_sum = torch.zeros(LEVELS, device=loss.device)
            self.level_count = torch.zeros(LEVELS, device=loss.device)
        level = tau * LEVELS // num_steps
        self.level_sum.index_add_(0, level, loss.detach().float())
        self.level_count.index_add_(0, level, torch.ones_like(loss, dtype=torch.float32))


class Run:
    """The state of a run: objectives, optimisers, EMA, record, step."""

    def __init__(self, folder: Path, settings: Settings, objectives: list[Objective], resume: bool,
                 identity: dict) -> None:
        self.folder, self.settings, self.objectives = folder, settings, objectives
        self.step, self.identity = 0, identity
        self.device = next(objectives[0].module.parameters()).device
        self.rank = process_rank()
        self.precision = settings.precision or machine.probe_precision(self.device)
        self.trained = []
        for one in objectives:
            self.trained.append([p for p in one.module.parameters() if p.requires_grad])
        self.optimizers = [make_optimizers(one.module, one.muon, one.betas) for one in objectives]
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True        # every step has the same shapes
            torch.set_float32_matmul_precision("high")
        for one in objectives:
            if settings.channels_last:
                for p in one.module.parameters():
                    if p.ndim == 4:
                        p.data = p.data.contiguous(memory_format=torch.channels_last)
            if settings.compile:
                one.module.compile()
        self.ema = EMA(objectives[0].module, settings.ema)
        self.totals = Totals()
        self.bad_step = torch.full((len(objectives),), -1, device=self.device)
        resolved = dict(asdict(settings), precision=self.precision)
        self.record = Record(resolved, provenance(self.device) | dict(
            parameters={one.name: sum(p.numel() for p in trained)
                        for one, trained in zip(objectives, self.trained)}, **identity))
        if resume and (folder / STATE).is_file():
            self.load()
        self.began = time.monotonic() - 60 * self.record.minutes
        self.process_began = time.process_time() - 60 * self.record.process_minutes

    def one_step(self, step: int) -> None:
        """One optimiser step of every objective."""
        for number, objective in enumerate(self.objectives):
            if self.backward(step, objective):
                self.update(step, number, objective)
        self.ema.update(self.objectives[0].module)
        self.step = step + 1

    def backward(self, step: int, objective: Objective) -> bool:
        """Gradients of one objective, of all accumulated parts. False if it leaves the step out."""
        objective.module.zero_grad(set_to_none=True)
        parts = self.settings.accumulate
        for part in range(parts):
            draw = BatchRandom(self.settings.seed, step, self.settings.batch, self.device,
                               part=self.rank * parts + part, parts=parts * world_size())
            with self.autocast():
                found = objective.loss(draw)
            if found is None:
                return False
            loss, logs = found
            (loss / parts).backward()
            self.totals.add(objective.name, loss)
            for name, value in logs.items():
                if name not in ("tau", "loss"):
                    self.totals.add(name, torch.as_tensor(value))
            if "tau" in logs:
                self.totals.add_levels(logs["tau"], logs["loss"])
        return True

    def autocast(self) -> AbstractContextManager:
        """The number format of forward passes."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def update(self, step: int, number: int, objective: Objective) -> None:
        """Clip the gradients and step. A gradient that is not finite becomes zero and is reported
        at the next row: no NaN reaches the weights, and nobody waits for the device to find out."""
        grads = [p.grad for p in self.trained[number] if p.grad is not None]
        mean_over_processes(grads)
        norm = nn.utils.get_total_norm(grads)
        finite = norm.isfinite()
        factor = (self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, torch.where(finite, factor, 0.0))
        for grad in grads:
            grad.nan_to_num_(0.0, 0.0, 0.0)                                  # inf or NaN times 0
        first = (self.bad_step[number] < 0) & ~finite
        self.bad_step[number] = torch.where(first, step, self.bad_step[number])
        settings = self.settings
        lr = learning_rate(settings.lr, step, settings.steps, settings.warmup) * objective.lr_scale
        for optimizer in self.optimizers[number]:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def note(self, watch: Watch, validate: bool) -> None:
        """One row of the record: means since the last row. Only here is the device read."""
        losses = {}
        for name, (total, count) in sorted(self.totals.losses.items()):
            losses[name] = total / count
        mean_over_processes(list(losses.values()))
        for objective, bad in zip(self.objectives, self.bad_step.tolist()):
            if bad >= 0:
                raise FloatingPointError(
                    f"the gradient of {objective.name} is not finite at step {bad}; the last "
                    f"checkpoint in {self.folder} is from before that. Try a smaller --lr than "
                    f"{self.settings.lr:g}, or --precision fp32")
        values = torch.stack([value.to(self.device) for value in losses.values()]).tolist()
        self.clock()
        row = dict(step=self.step, minutes=round(self.record.minutes, 3),
                   process_minutes=round(self.record.process_minutes, 3),
                   losses={name: round(value, 5) for name, value in zip(losses, values)})
        if self.totals.level_sum is not None:
            row["levels"] = self.level_means()
        if watch.row:
            row |= watch.row()
        if validate:
            with self.averaged():
                row["held_out"] = watch.validate()
        self.record.rows.append(row)
        self.totals = Totals()

    def level_means(self) -> list[float | None]:
        """Mean loss of each bin of tau; None for an empty one."""
        both = torch.stack([self.totals.level_sum, self.totals.level_count])
        mean_over_processes([both])
        means = []
        for total, count in zip(*both.tolist()):
            means.append(round(total / count, 5) if count else None)
        return means

    def clock(self) -> None:
        """Bring the record's minutes up to date."""
        self.record.minutes = (time.monotonic() - self.began) / 60
        self.record.process_minutes = (time.process_time() - self.process_began) / 60

    def averaged(self) -> "Averaged":
        """A context in which the first module has its EMA weights."""
        return Averaged(self.ema, self.objectives[0].module)

    def draw_strip(self, strip: Callable) -> None:
        """A strip of frames from the EMA weights and always the same noise."""
        name = f"strip_{self.step:06d}.webp"
        with self.averaged(), replacing(self.folder / name) as beside:
            strip().save(beside, format="WEBP", quality=80)
        self.record.strips = sorted({*self.record.strips, name})

    def save(self) -> None:
        """Everything that a resumed run needs, written beside and renamed."""
        if self.rank:
            return
        self.clock()
        optimizers = [[dict(optimizer.state[p]) for p in optimizer.param_groups[0]["params"]]
                      for pair in self.optimizers for optimizer in pair]
        state = dict(step=self.step, ema=dict(shadow=self.ema.shadow, count=self.ema.count),
                     modules=[dict(one.module.state_dict()) for one in self.objectives],
                     optimizers=optimizers, record=asdict(self.record),
                     settings=self.record.settings, identity=self.identity)
        save_state(self.folder / STATE, state)
        self.record.save(self.folder)

    def load(self) -> None:
        """Take up the run in the folder. Raises ValueError if it is another one."""
        state = load_state(self.folder / STATE, self.device)
        self.refuse_another(state["settings"], self.record.settings, "settings")
        self.refuse_another(state["identity"], self.identity, "data or layers")
        for objective, tensors in zip(self.objectives, state["modules"]):
            load_into(objective.module, tensors, str(self.folder))
        flat = [optimizer for pair in self.optimizers for optimizer in pair]
        for optimizer, values in zip(flat, state["optimizers"]):
            load_optimizer(optimizer, values)
        self.ema.shadow, self.ema.count = state["ema"]["shadow"], state["ema"]["count"]
        self.record, self.step = Record(**state["record"]), state["step"]

    def refuse_another(self, stored: dict, now: dict, what: str) -> None:
        """Raises ValueError if two dictionaries differ, naming the keys."""
        changed = [key for key in now if stored.get(key) != now[key] and key != "save_every_s"]
        if changed:
            raise ValueError(f"{self.folder} holds a run with other {what} ({', '.join(changed)}); "
                             "give another --out, or --no-resume to start anew")


def load_optimizer(optimizer: torch.optim.Optimizer, values: list[dict]) -> None:
    """Put the stored state of each parameter where a fresh optimiser keeps it.

    Everything lies on the parameter's device but the step counter of AdamW, a tensor without
    dimensions: that is on the CPU unless the optimiser is fused.
    """
    fused = optimizer.defaults.get("fused")
    for p, tensors in zip(optimizer.param_groups[0]["params"], values):
        for name, x in tensors.items():
            device = p.device if x.ndim or fused else "cpu"
            optimizer.state[p][name] = x.to(device)


class Averaged:
    """Inside, the module has the averaged weights; outside, those that train."""

    def __init__(self, ema: EMA, module: nn.Module) -> None:
        self.ema, self.module = ema, module

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.ema.copy_to(self.module)

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        for name, p in self.module.named_parameters():
            p.copy_(self.kept[name])
