"""What this machine can do: device, threads, number format, size; and the report of `python -m vldm_mini check`.

Nothing here is the paper's. Two things cost beginners most of their time on a CPU: more threads than the container
may use, and bf16 that the processor only emulates (up to 200 times slower than fp32). So threads come from the quota
and the number format from a stop-watch, not from asking what is "supported". Chapter 00 prints the report.
"""
import importlib.metadata
import json
import os
import platform
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("xs", "s", "m")
SHIPPED = ("actions/autoencoder", "actions/image", "actions/temporal", "actions/classifiers")


def device():
    """The torch.device to compute on: CUDA, else MPS, else the CPU."""
    import torch
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# ------------------------------------------------------------------------------------------------------------ threads

def threads():
    """CPU threads this process may really use: the least of its core mask, its cgroup's quota and OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    limits = [cores, quota(), int(asked) if asked.isdigit() and int(asked) else None]
    return max(1, int(min(limit for limit in limits if limit)))


def quota(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """Cores that the cgroup (version 1 or 2) grants, as a float; None where nothing is limited or known."""
    try:
        groups = [line.split(":", 2) for line in Path(own).read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, path in groups:
        if controllers == "":                                             # version 2: one tree for everything
            trees, files = [""], ["cpu.max"]
        elif "cpu" in controllers.split(","):                             # version 1: a tree for each controller
            trees, files = [controllers, "cpu"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        own = Path(path.lstrip("/"))                    # it may not exist in a container: then those above it count
        limits += [_ratio(Path(root) / tree / group, files) for tree in trees for group in (own, *own.parents)]
    return min(filter(None, limits), default=None)


def _ratio(folder, files):
    """quota / period from one file "200000 100000" or from two; None for "max", -1, or files that are not there."""
    try:
        share, period = " ".join((folder / file).read_text() for file in files).split()
        return int(share) / int(period) if int(share) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


# ------------------------------------------------------------------------------------------------------ number format

@dataclass(frozen=True)
class Probe:
    """The number format to compute in, the speeds (1e9 operations a second) that decided it, and the reason."""
    precision: str
    fp32_gflops: float | None
    bf16_gflops: float | None
    why: str


def probe_precision(on=None):
    """"fp32" or "bf16", whichever this machine multiplies matrices faster in (see `probe`)."""
    return probe(on).precision


def probe(on=None):
    """Time a matrix product in fp32 and under bf16 autocast on the device `on`; VLDM_PRECISION overrules that."""
    asked = os.environ.get("VLDM_PRECISION", "")
    if asked:
        if asked not in ("fp32", "bf16"):
            raise ValueError(f"VLDM_PRECISION is {asked!r}; use fp32 or bf16, or unset it (then the machine is timed)")
        return Probe(asked, None, None, "VLDM_PRECISION says so")
    return _timed_probe(str(on or device()))


@lru_cache
def _timed_probe(name):
    fp32, bf16 = _gflops(name, 256, False), _gflops(name, 256, True)
    if bf16 > fp32 / 3:                                         # else emulated: a larger product would take seconds
        n = 4096 if name.startswith("cuda") else 1024
        fp32, bf16 = _gflops(name, n, False), _gflops(name, n, True)
    if bf16 > 1.2 * fp32:
        return Probe("bf16", fp32, bf16, f"bf16 is {bf16 / fp32:.1f} times as fast as fp32 here")
    slower = "is no faster" if bf16 > 0.8 * fp32 else f"is {fp32 / max(bf16, 1e-3):.0f} times slower"
    return Probe("fp32", fp32, bf16, f"bf16 {slower} than fp32 here")


def _gflops(name, n, bf16, budget_s=0.15):
    """Best speed of an n x n matrix product within the budget, in 1e9 operations a second; 0 where the format fails."""
    import torch
    kind = name.partition(":")[0]
    sync = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(kind, lambda: None)
    a = torch.ones(n, n, device=name)
    best, end = float("inf"), time.perf_counter() + budget_s
    try:
        with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
            for run in range(100):                              # the first run sets kernels up: never the only one
                sync()
                start = time.perf_counter()
                a @ a
                sync()
                best = min(best, time.perf_counter() - start)
                if run and time.perf_counter() > end:
                    break
    except RuntimeError:
        return 0.0
    return 2 * n ** 3 / best / 1e9


# --------------------------------------------------------------------------------------------------------------- size

def pick_size():
    """"xs", "s" or "m": what VLDM_SIZE says (ValueError for another word), else "m" on CUDA and "s" elsewhere."""
    asked = os.environ.get("VLDM_SIZE", "")
    if asked and asked not in SIZES:
        raise ValueError(f"VLDM_SIZE is {asked!r}; use {', '.join(SIZES)}, or unset it (then the machine decides)")
    return asked or ("m" if device().type == "cuda" else "s")


# ------------------------------------------------------------------------------------------------------------- report

def report():
    """All that is worth knowing about this machine, as a dictionary for JSON; "problems" must be mended."""
    missing = packages_missing("", "video")
    problems = list(missing)
    facts = {"vldm_mini": _version("vldm_mini") or "not installed", "python": platform.python_version(),
             "system": f"{platform.system()} {platform.machine()}",
             "packages": {name: _version(name) for name, _, _ in requirements()},
             "optional": packages_missing("notebooks", "sd", "test")}
    if not any(problem.startswith(("torch", "numpy")) for problem in missing):
        problems += _add_compute(facts)
    facts |= {"data": {}, "weights": {}, "minutes": {}}
    if not missing:                                             # looking further needs the packages
        facts["data"], bad_data = data_found()
        facts["weights"], bad_weights = weights_found()
        facts["minutes"] = minutes()
        problems += bad_data + bad_weights
    return facts | {"problems": problems}


def _add_compute(facts):
    """Device, threads, number format and size into the report; the problems met on the way."""
    import torch
    problems, here = [], device()
    facts["device"] = torch.cuda.get_device_name() if here.type == "cuda" else here.type
    facts["threads"], facts["cores"] = threads(), os.cpu_count()
    for name, ask in (("size", pick_size), ("number_format", lambda: vars(probe(here)))):
        try:
            facts[name] = ask()
        except ValueError as error:
            problems.append(str(error))
    return problems


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements():
    """[(package, least version, extra)] as pyproject.toml states them; extra is "" for what is always needed."""
    pyproject = ROOT / "pyproject.toml"
    if pyproject.is_file():                                                # a clone: its own file is never stale
        import tomllib
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        lines = [(line, extra) for extra, group in groups.items() for line in group]
    else:
        lines = [(line, (re.search(r"extra == ['\"](.+?)['\"]", line) or ["", ""])[1])
                 for line in importlib.metadata.requires("vldm_mini") or []]
    found = [(re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line), extra) for line, extra in lines]
    return [(match[1], match[2], extra) for match, extra in found if match]


def packages_missing(*extras):
    """One sentence for each package of these extras that is missing or too old."""
    number = lambda version: [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]     # noqa: E731
    said = []
    for name, least, extra in requirements():
        have = _version(name)
        if extra in extras and (have is None or number(have) < number(least)):
            state = "is not installed" if have is None else f"is {have}, older than {least}"
            said.append(f'{name} {state}: pip install -e ".{f"[{extra}]" if extra else ""}" -c constraints.txt')
    return list(dict.fromkeys(said))


def data_found():
    """({set: what is there}, problems): the folder that VLDM_DATA names, each file checked; or the download cache."""
    import pooch

    from vldm_mini.datasets import video
    named = os.environ.get("VLDM_DATA", "")
    if named and not (Path(named).is_dir() and any(Path(named).iterdir())):
        return {}, [f"VLDM_DATA names {named}, which is no folder or is empty; mend it, or unset it (to fetch videos)"]
    root, found, problems = Path(named or pooch.os_cache("vldm_mini")), {}, []
    for name, entry in video.catalogue().items():
        there = sum((root / file.path).is_file() for file in entry.files)
        found[name] = f"{there} of {len(entry.files)} files in {root}" if there else "not here; fetched on first use"
        try:
            if named and there:
                video.fetch(name)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return found, problems


def weights_found():
    """({file: MB}, problems): the weights under data/checkpoints; each must be whole."""
    top = ROOT / "data" / "checkpoints"
    files = {file.relative_to(top).as_posix(): file for file in sorted(top.rglob("*.safetensors"))}
    sizes = {name: round(file.stat().st_size / 1e6, 2) for name, file in files.items()}
    wrong = [f"no weights of {name}" for name in SHIPPED if not any(file.startswith(f"{name}/") for file in files)]
    wrong += [f"{name} is damaged" for name, file in files.items() if not _readable(file)]
    return sizes, [f"data/checkpoints: {what}; git checkout -- data/checkpoints, or clone again" for what in wrong]


def _readable(file):
    """True for a whole safetensors file; only its header is read."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(file, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def minutes():
    """{chapter or stage: minutes}: chapters as their metadata says for CPU or GPU, training as it was recorded."""
    column, top = f"minutes_{'gpu' if device().type == 'cuda' else 'cpu'}", ROOT / "data" / "checkpoints"
    found = {file.stem: _stated(file, "metadata", "vldm", column) for file in sorted(ROOT.glob("notebooks/*.ipynb"))}
    for file in sorted(top.rglob("record.json")):
        found[f"training {file.parent.relative_to(top).as_posix()}"] = _stated(file, "minutes")
    return found


def _stated(file, *keys):
    """The value under these keys of a JSON file, or "?" where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return value
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def describe(facts):
    """The report as text: one fact a line, problems last."""
    plain = ("vldm_mini", "python", "system", "device", "size")
    lines = [f"{key:<15}{facts[key]}" for key in plain if key in facts]
    if "threads" in facts:
        lines.append(f"{'threads':<15}{facts['threads']} of {facts['cores']} cores")
    if probed := facts.get("number_format"):
        fp32, bf16 = probed["fp32_gflops"], probed["bf16_gflops"]
        speeds = "" if fp32 is None else f"; {fp32:.1f} against {bf16:.1f} GFLOP/s"
        lines.append(f"{'number format':<15}{probed['precision']} ({probed['why']}{speeds})")
    lines += ["packages"] + [f"  {name:<20}{version or '-'}" for name, version in facts["packages"].items()]
    units = {"data": ("data", ""), "weights": ("weights", "MB"), "minutes": ("to run", "min")}
    for key, (title, unit) in units.items():
        lines += [title] + [f"  {name:<36} {value} {unit}" for name, value in facts[key].items()]
    for title, key in (("not installed, needed for some chapters", "optional"), ("PROBLEMS", "problems")):
        lines += [title] * bool(facts[key]) + [f"  {line}" for line in facts[key]]
    return "\n".join(lines if facts["problems"] else lines + ["all is well"])


def synchronize(on: "torch.device") -> None:  # noqa: F821
    """Wait until the device has done all that it was given; nothing to wait for on a CPU."""
    import torch
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    elif on.type == "mps":
        torch.mps.synchronize()


def free_memory(on: "torch.device") -> int:  # noqa: F821
    """Bytes of memory that are free on the device, as far as it says; of a CPU, a cautious guess."""
    import torch
    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0]
    return 8 << 30
