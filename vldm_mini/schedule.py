"""The noise schedule of diffusion, and its settings as a model's config keeps them.

Paper: section 2, "linear noise schedule, following Ho et al." (appendix F). Chapter 02 walks
through this module. `diffusion` re-exports its names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# --------------------------------------------------------------------------------------------------
# The schedule: z_tau = alpha_tau x + sigma_tau eps, with alpha_tau^2 + sigma_tau^2 = 1
# (variance preserving).


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving noise schedule, an immutable value.

    alpha_tau, sigma_tau: float64 tensors of shape (num_steps,) on the CPU. Two schedules are equal
    if their tables are. Raises ValueError if the tables are not two vectors of one length.
    """

    alpha_tau: Tensor
    sigma_tau: Tensor

    def __post_init__(self) -> None:
        if self.alpha_tau.ndim != 1 or self.alpha_tau.shape != self.sigma_tau.shape:
            raise ValueError(
                f"alpha_tau and sigma_tau must be vectors of one length, got shapes "
                f"{tuple(self.alpha_tau.shape)} and {tuple(self.sigma_tau.shape)}"
            )
        object.__setattr__(self, "_tables", {})  # copies of both tables, one pair per device

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return torch.equal(self.alpha_tau, other.alpha_tau) and torch.equal(
            self.sigma_tau, other.sigma_tau
        )

    def __hash__(self) -> int:
        return hash((self.num_steps, float(self.alpha_tau[0]), float(self.alpha_tau[-1])))

    def __reduce__(self) -> tuple:
        # copies and pickles hold the tables only, not the ones cached on other devices
        return Schedule, (self.alpha_tau, self.sigma_tau)

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        """The schedule of noise variances beta_tau (num_steps,), each in 0..1."""
        # alpha_tau^2 = prod_{s <= tau} (1 - beta_s)                     Ho et al. 2020, eq. (4)
        alpha_squared = torch.cumprod(1 - betas.double(), dim=0)
        return cls(alpha_squared.sqrt(), (1 - alpha_squared).sqrt())

    @classmethod
    def linear(
        cls, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
    ) -> Schedule:
        """Linearly increasing betas: the paper's schedule ("following Ho et al.", appendix F)."""
        return cls.from_betas(_line(beta_start, beta_end, num_steps))

    @classmethod
    def scaled_linear(
        cls, num_steps: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 1.2e-2
    ) -> Schedule:
        """Linearly increasing square roots of the betas: Stable Diffusion's schedule."""
        return cls.from_betas(_line(beta_start**0.5, beta_end**0.5, num_steps) ** 2)

    def zero_terminal_snr(self) -> Schedule:
        """This schedule rescaled so that the last step is pure noise (alpha_tau = 0).

        alpha_tau at tau = 0 stays as it is. Lin et al. 2023 (arXiv 2305.08891), algorithm 1.
        An eps-prediction cannot be sampled with it: at alpha_tau = 0 it says nothing about x0.
        """
        first, last = self.alpha_tau[0], self.alpha_tau[-1]
        # alpha'_tau = (alpha_tau - alpha_T) alpha_0 / (alpha_0 - alpha_T)
        alpha_tau = (self.alpha_tau - last) * first / (first - last)
        return Schedule(alpha_tau, (1 - alpha_tau**2).sqrt())

    @property
    def num_steps(self) -> int:
        """Number of diffusion times."""
        return len(self.alpha_tau)

    @property
    def log_snr(self) -> Tensor:
        """lambda_tau = log(alpha_tau^2 / sigma_tau^2), float64 (num_steps,), decreasing in tau."""
        return 2 * (self.alpha_tau.log() - self.sigma_tau.log())

    def at(self, tau: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_tau and sigma_tau, shaped (b, 1, ..., 1) to multiply `like` (b, ...).

        tau: (b,) integers, or one integer for all. Results have the dtype and device of `like`.
        Raises ValueError if tau lies outside 0..num_steps - 1. A tau on an accelerator is not
        checked: reading it would make the CPU wait for the device.
        """
        if not isinstance(tau, Tensor):
            self._check_range(tau, tau)
            tau = torch.full((1,), tau, device=like.device)
        elif tau.device.type == "cpu":
            self._check_range(int(tau.min()), int(tau.max()))
        tau = tau.reshape(-1)
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha_tau, sigma_tau = (
            table[tau].to(like.dtype).to(like.device).reshape(shape)
            for table in self._tables_on(tau.device)
        )
        return alpha_tau, sigma_tau

    def _check_range(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.num_steps:
            raise ValueError(f"tau must lie in 0..{self.num_steps - 1}, got {lowest}..{highest}")

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both tables on a device, copied there once."""
        if device not in self._tables:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
            tables = self.alpha_tau.to(device, dtype), self.sigma_tau.to(device, dtype)
            self._tables[device] = tables
        return self._tables[device]


def _line(start: float, end: float, num_steps: int) -> Tensor:
    """num_steps evenly spaced float64 numbers, on the CPU also within `torch.device(...)`."""
    return torch.linspace(start, end, num_steps, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class ScheduleConfig:
    """The settings of a schedule: what a model's config stores.

    kind: "linear" (the paper) or "scaled_linear" (Stable Diffusion). beta_start, beta_end: noise
    variances of the first and last step, None for the kind's own. zero_terminal_snr: rescale so
    that the last step is pure noise. Raises ValueError for settings that give no schedule.
    """

    kind: str = "linear"
    num_steps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "scaled_linear"):
            raise ValueError(f"kind must be linear or scaled_linear, not {self.kind!r}")
        betas = [beta for beta in (self.beta_start, self.beta_end) if beta is not None]
        if self.num_steps < 2 or not all(0 < beta < 1 for beta in betas):
            raise ValueError(f"a schedule needs two steps and betas between 0 and 1, got {self}")

    def build(self) -> Schedule:
        """The schedule of these settings."""
        make = Schedule.linear if self.kind == "linear" else Schedule.scaled_linear
        given = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        betas = {name: beta for name, beta in given.items() if beta is not None}
        schedule = make(self.num_steps, **betas)
        return schedule.zero_terminal_snr() if self.zero_terminal_snr else schedule
