"""What this machine can do: device, threads, number format, size.

Nothing here is from the paper. Three things cost beginners most of their time: more threads than
the container may use, bf16 that the processor only emulates (up to 200 times slower than fp32), and
a GPU that is "available" but for which this torch has no kernels. So threads come from the
container's quota, the number format from a short timing, and a GPU counts only after one real
operation on it has worked. `python -m vldm_mini check` prints the report (`report`).
"""
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIZES = ("xs", "s", "m")


# --------------------------------------------------------------------------------------------------
# Device.

def device() -> "torch.device":
    """The device to compute on: CUDA, else MPS, else the CPU; each only if it really computes."""
    import torch
    for kind in ("cuda", "mps"):
        if is_available(kind) and not device_error(kind):
            return torch.device(kind)
    return torch.device("cpu")


def is_available(kind: str) -> bool:
    """What torch says, before anything has been tried."""
    import torch
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


@lru_cache
def device_error(kind: str) -> str:
    """Why one matrix product on a device ("cuda", "mps") fails, or "" if it works."""
    import torch
    try:
        x = torch.ones(8, 8, device=kind)
        total = float((x @ x).sum())
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return "" if total == 512 else f"a matrix product gives {total} in place of 512"


def synchronize(on: "torch.device") -> None:
    """Wait until the device has done all its work; on a CPU there is nothing to wait for."""
    import torch
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    elif on.type == "mps":
        torch.mps.synchronize()


def free_memory(on: "torch.device") -> int:
    """Bytes of memory that are free on the device; a cautious guess where it does not say."""
    import torch
    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0]
    return 8 << 30


def device_memory(on: "torch.device") -> int | None:
    """Bytes of memory that the device has in all, or None where it does not say."""
    import torch
    if on.type == "cuda":
        return torch.cuda.get_device_properties(on).total_memory
    if on.type == "mps":
        return torch.mps.recommended_max_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):                          # Windows, for one
        return None


# --------------------------------------------------------------------------------------------------
# Threads.

def threads() -> int:
    """CPU threads that this process may really use, at least 1.

    The smallest of its core mask, its cgroup's quota and OMP_NUM_THREADS.
    """
    limits = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    granted = quota()
    if granted:
        limits.append(granted)
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested) > 0:
        limits.append(int(requested))
    return max(1, int(min(limits)))


def set_threads() -> None:
    """Let torch use as many threads as `threads` says, and no more."""
    import torch
    torch.set_num_threads(threads())


def quota(root: Path | str = "/sys/fs/cgroup",
          own: Path | str = "/proc/self/cgroup") -> float | None:
    """Cores that the cgroup (version 1 or 2) grants; None where nothing is limited or known.

    root: the cgroup tree; own: the file that names this process's groups.
    """
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":                                # version 2: one tree for everything
            trees, files = [""], ["cpu.max"]
        elif "cpu" in controllers.split(","):                # version 1: a tree for each controller
            trees, files = [controllers, "cpu"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        group = Path(path.lstrip("/"))      # a container may not see it: then those above it count
        for tree in trees:
            for above in (group, *group.parents):
                limits.append(_ratio(Path(root) / tree / above, files))
    return min((limit for limit in limits if limit), default=None)


def _ratio(folder: Path, files: list[str]) -> float | None:
    """quota / period, from one file "200000 100000" or from two.

    None for "max", for -1, and where the files are not there.
    """
    try:
        share, period = " ".join((folder / file).read_text() for file in files).split()
        return int(share) / int(period) if int(share) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


# --------------------------------------------------------------------------------------------------
# Number format.

@dataclass(frozen=True)
class Probe:
    """The number format to compute in ("fp32", "bf16"), the speeds (GFLOP/s), and the reason."""
    precision: str
    fp32_gflops: float | None
    bf16_gflops: float | None
    why: str


def probe_precision(on: "torch.device | None" = None) -> str:
    """"fp32" or "bf16", whichever this machine multiplies matrices faster in (see `probe`)."""
    return probe(on).precision


def probe(on: "torch.device | None" = None) -> Probe:
    """Time a matrix product in fp32 and under bf16 autocast on a device (default: `device()`).

    The environment variable VLDM_PRECISION overrides it; ValueError if it is neither format.
    """
    requested = os.environ.get("VLDM_PRECISION", "")
    if requested and requested not in ("fp32", "bf16"):
        raise ValueError(f"VLDM_PRECISION is {requested!r}; use fp32 or bf16, or unset it (then "
                         "the machine is timed)")
    if requested:
        return Probe(requested, None, None, "as VLDM_PRECISION says")
    return _timed_probe(str(on or device()))


@lru_cache
def _timed_probe(name: str) -> Probe:
    fp32, bf16 = _gflops(name, 256, False), _gflops(name, 256, True)
    if bf16 > fp32 / 3:                        # else it is emulated: a larger product takes seconds
        n = 4096 if name.startswith("cuda") else 1024
        fp32, bf16 = _gflops(name, n, False), _gflops(name, n, True)
    if bf16 > 1.2 * fp32:
        return Probe("bf16", fp32, bf16, f"bf16 is {bf16 / fp32:.1f} times as fast as fp32 here")
    if bf16 > 0.8 * fp32:
        return Probe("fp32", fp32, bf16, "bf16 is no faster than fp32 here")
    slower = fp32 / max(bf16, 1e-3)
    return Probe("fp32", fp32, bf16, f"bf16 is {slower:.0f} times slower than fp32 here")


def _gflops(name: str, n: int, bf16: bool, budget_s: float = 0.15) -> float:
    """Best speed of an n x n matrix product within the budget, in GFLOP/s; 0 if it fails."""
    import torch
    on = torch.device(name)
    best, end = float("inf"), time.perf_counter() + budget_s
    try:
        a = torch.ones(n, n, device=on)
        with torch.no_grad(), torch.autocast(on.type, torch.bfloat16, bf16, cache_enabled=False):
            for run in range(100):             # the first run sets kernels up: never the only one
                synchronize(on)
                start = time.perf_counter()
                a @ a
                synchronize(on)
                best = min(best, time.perf_counter() - start)
                if run and time.perf_counter() > end:
                    break
    except RuntimeError:
        return 0.0
    return 2 * n ** 3 / best / 1e9


# --------------------------------------------------------------------------------------------------
# Size.

def pick_size() -> str:
    """"xs", "s" or "m": what VLDM_SIZE says, else "m" on CUDA and "s" elsewhere.

    Raises ValueError if VLDM_SIZE is none of them.
    """
    requested = os.environ.get("VLDM_SIZE", "")
    if requested and requested not in SIZES:
        raise ValueError(f"VLDM_SIZE is {requested!r}; use {', '.join(SIZES)}, or unset it (then "
                         "the machine decides)")
    return requested or ("m" if device().type == "cuda" else "s")
