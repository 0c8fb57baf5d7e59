"""The report of `python -m vldm_mini check`: packages, device, data, weights, minutes, problems.

Nothing here is from the paper. Chapter 00 prints the report.
"""
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from . import machine

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("actions/autoencoder", "actions/image", "actions/temporal", "actions/classifiers")


def collect() -> dict[str, Any]:
    """All that is worth knowing about this machine, ready for JSON; "problems" need a remedy."""
    missing = packages_missing("", "video")
    facts = {
        "vldm_mini": _version("vldm_mini") or "not installed",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name, _, _ in requirements()},
        "optional": packages_missing("notebooks", "sd", "test"),
        "data": {}, "weights": {}, "minutes": {}, "problems": missing,
    }
    if not any(line.startswith(("torch", "numpy")) for line in missing):
        _add_compute(facts)
    if not missing:                                               # the rest needs the packages
        facts["data"], bad_data = data_found()
        facts["weights"], bad_weights = weights_found()
        facts["minutes"] = minutes()
        facts["problems"] = facts["problems"] + bad_data + bad_weights
    return facts


def _add_compute(facts: dict[str, Any]) -> None:
    """Device, memory, threads, number format and size into the report, and their problems."""
    import torch
    here, problems = machine.device(), []
    facts["device"] = torch.cuda.get_device_name() if here.type == "cuda" else here.type
    memory = machine.device_memory(here)
    facts["memory_gib"] = round(memory / 2 ** 30, 1) if memory else None
    facts["threads"], facts["cores"] = machine.threads(), os.cpu_count()
    for kind in ("cuda", "mps"):
        error = machine.device_error(kind) if machine.is_available(kind) else ""
        if error:
            problems.append(f"{kind} is there but does not compute ({error}); the {here.type} is "
                            "used. Install a torch that was built for this GPU")
    try:
        facts["size"] = machine.pick_size()
    except ValueError as error:
        problems.append(str(error))
    try:
        facts["number_format"] = vars(machine.probe(here))
    except ValueError as error:
        problems.append(str(error))
    facts["problems"] = facts["problems"] + problems


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[tuple[str, str, str]]:
    """[(package, least version, extra)] of pyproject.toml; extra is "" for what all need."""
    pyproject = ROOT / "pyproject.toml"
    lines = []
    if pyproject.is_file():                                # a clone: its own file is never stale
        import tomllib
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        lines += [(line, "") for line in project["dependencies"]]
        for extra, group in project["optional-dependencies"].items():
            lines += [(line, extra) for line in group]
    else:
        for line in importlib.metadata.requires("vldm_mini") or []:
            extra = re.search(r"extra == ['\"](.+?)['\"]", line)
            lines.append((line, extra[1] if extra else ""))
    found = []
    for line, extra in lines:
        match = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line)
        if match:
            found.append((match[1], match[2], extra))
    return found


def packages_missing(*extras: str) -> list[str]:
    """One sentence for each package of these extras that is missing or too old."""
    sentences = []
    for name, least, extra in requirements():
        version = _version(name)
        if extra not in extras or version and _numbers(version) >= _numbers(least):
            continue
        state = f"is {version}, older than {least}" if version else "is not installed"
        what = f".[{extra}]" if extra else "."
        sentences.append(f'{name} {state}: pip install -e "{what}" -c constraints.txt')
    return list(dict.fromkeys(sentences))


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version: "2.11.0+cpu" -> [2, 11, 0]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def data_found() -> tuple[dict[str, str], list[str]]:
    """({set: what is there}, problems) of the folder that VLDM_DATA names, or of the cache."""
    import pooch

    from vldm_mini.datasets import video
    named = os.environ.get("VLDM_DATA", "")
    if named and not (Path(named).is_dir() and any(Path(named).iterdir())):
        return {}, [f"VLDM_DATA names {named}, which is no folder or is empty; correct it, or "
                    "unset it (to fetch videos)"]
    root, found, problems = Path(named or pooch.os_cache("vldm_mini")), {}, []
    for name, entry in video.catalogue().items():
        count = sum((root / file.path).is_file() for file in entry.files)
        found[name] = "not here; fetched on first use"
        if count:
            found[name] = f"{count} of {len(entry.files)} files in {root}"
        try:
            if named and count:
                video.fetch(name)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return found, problems


def weights_found() -> tuple[dict[str, float], list[str]]:
    """({file: MB}, problems) of the weights under data/checkpoints; each must be whole."""
    top = ROOT / "data" / "checkpoints"
    files = {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*.safetensors"))}
    wrong = [f"no weights of {name}" for name in SHIPPED
             if not any(file.startswith(f"{name}/") for file in files)]
    wrong += [f"{name} is damaged" for name, path in files.items() if not _is_whole(path)]
    sizes = {name: round(path.stat().st_size / 1e6, 2) for name, path in files.items()}
    return sizes, [f"data/checkpoints: {what}; git checkout -- data/checkpoints, or clone again"
                   for what in wrong]


def _is_whole(path: Path) -> bool:
    """True for a whole safetensors file; only its header is read."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def minutes() -> dict[str, Any]:
    """{chapter or stage: minutes}: chapters as their metadata says, training as it was recorded."""
    column = "minutes_gpu" if machine.device().type == "cuda" else "minutes_cpu"
    found = {}
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        found[path.stem] = _lookup(path, "metadata", "vldm", column)
    top = ROOT / "data" / "checkpoints"
    for path in sorted(top.rglob("record.json")):
        found[f"training {path.parent.relative_to(top).as_posix()}"] = _lookup(path, "minutes")
    return found


def _lookup(path: Path, *keys: str) -> Any:
    """The value under these keys of a JSON file, or "?" where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return value
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def describe(facts: dict[str, Any]) -> str:
    """The report as text: one fact a line, problems last."""
    lines = []
    for key in ("vldm_mini", "python", "system", "device", "size"):
        if key in facts:
            lines.append(f"{key:<15}{facts[key]}")
    if facts.get("memory_gib"):
        lines.append(f"{'memory':<15}{facts['memory_gib']} GiB")
    if "threads" in facts:
        lines.append(f"{'threads':<15}{facts['threads']} of {facts['cores']} cores")
    if "number_format" in facts:
        lines.append(f"{'number format':<15}{_describe_format(facts['number_format'])}")
    lines.append("packages")
    lines += [f"  {name:<20}{version or '-'}" for name, version in facts["packages"].items()]
    titles = {"data": ("data", ""), "weights": ("weights", " MB"), "minutes": ("to run", " min")}
    for key, (title, unit) in titles.items():
        lines.append(title)
        lines += [f"  {name:<36} {value}{unit}" for name, value in facts[key].items()]
    for key, title in (("optional", "not installed, needed for some chapters"),
                       ("problems", "PROBLEMS")):
        if facts[key]:
            lines += [title, *(f"  {line}" for line in facts[key])]
    return "\n".join(lines if facts["problems"] else [*lines, "all is well"])


def _describe_format(probed: dict[str, Any]) -> str:
    """The number format with its reason and, where they were measured, the speeds."""
    fp32, bf16 = probed["fp32_gflops"], probed["bf16_gflops"]
    speeds = "" if fp32 is None else f"; {fp32:.1f} and {bf16:.1f} GFLOP/s in fp32 and bf16"
    return f"{probed['precision']} ({probed['why']}{speeds})"


def mini_marks() -> list[tuple[str, int, str]]:
    """[(file, line, reason)] of every `# MINI:` mark: what we chose, or do not as the paper does.

    In a comment, the reason runs to the end of the comment; in a docstring, to a blank line, the
    next mark or the end.
    """
    found = []
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for mark in re.finditer(r"(# )?\bMINI:[ ]", text):
            line_start = text.rfind("\n", 0, mark.start()) + 1
            code_before = text[line_start:mark.start()].strip()
            if not mark[1]:
                end = r'\n *\n|"""|MINI:[ ]'                 # in a docstring
            elif code_before:
                end = r"\n"                                  # a comment behind code: one line
            else:
                end = r"\n(?! *# )"
            reason = re.split(end, text[mark.end():], maxsplit=1)[0]
            reason = " ".join(re.sub(r"\n *# ", " ", reason).split())
            line = text.count("\n", 0, mark.start()) + 1
            found.append((file.relative_to(ROOT).as_posix(), line, reason))
    return found
