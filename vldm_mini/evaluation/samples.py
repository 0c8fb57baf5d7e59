"""Generated videos are sampled once and kept in runs/samples/, under a name that depends on the
weights and settings: for the benchmarks that share them.
"""
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vldm_mini import weights

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs"
SEEDS = (0, 1, 2)                   # generation seeds, pooled
# the stages that a plain generated clip depends on
STAGES = ("autoencoder", "image", "temporal", "boxes", "decoder")


def key(folder: str | Path, stages: Sequence[str] = STAGES, **settings: Any) -> str:
    """A name for what the weights of these stages generate with these settings: 16 hex digits.

    settings: anything that JSON holds.
    """
    folder, parts = Path(folder), []
    for file in sorted(folder.rglob("*")):
        stage = file.parent.relative_to(folder).as_posix()
        if file.name in (weights.WEIGHTS, weights.CONFIG) and stage in (".", *stages):
            parts.append((str(file.relative_to(folder)), weights.sha256(file)))
    text = json.dumps([parts, SEEDS, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path_of(name: str) -> Path:
    """Where samples of that name are kept."""
    return RUNS / "samples" / f"{name}.safetensors"


def kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors kept under `name`; made by make() and kept if there are none yet."""
    path = path_of(name)
    if not path.is_file():
        made = {part: tensor.contiguous() for part, tensor in make().items()}
        weights.save_tensors(path, made)
    return weights.load_tensors(path)


def to_uint8(videos: Tensor) -> Tensor:
    """Videos (... 3 h w) in [-1, 1] -> uint8 (... h w 3), on the CPU."""
    return (videos * 127.5 + 127.5).round().clamp(0, 255).byte().movedim(-3, -1).cpu()


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB."""
    unit = 1024 if sys.platform == "linux" else 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Stages(dict):
    """{stage: {"seconds", "peak_memory_mb"}}: the cost of each stage, called one after the other.

    Memory is that of the process so far, weights included.
    """

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """make(), timed, without gradients; its return value."""
        start = time.perf_counter()
        with torch.no_grad():
            out = make()
        self[name] = dict(seconds=round(time.perf_counter() - start, 2),
                          peak_memory_mb=round(peak_memory_mb()))
        return out
