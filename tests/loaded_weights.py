"""Which shipped weights a run has loaded, and their checksums.

`weights.load_tensors` appends the path of every file that it opens to the file that the environment
variable VLDM_WEIGHTS_LOG names; processes started meanwhile (kernels of notebooks) inherit it.
"""
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vldm_mini import weights

VARIABLE = "VLDM_WEIGHTS_LOG"
ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "data" / "checkpoints"


@dataclass
class Used:
    """checksums: {path below data/checkpoints: sha256}, filled when `recorded` ends."""
    checksums: dict[str, str] = field(default_factory=dict)


@contextmanager
def recorded() -> Iterator[Used]:
    """Records the shipped weights that are loaded inside, by this process and its children."""
    used, before = Used(), os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "weights.log"
        os.environ[VARIABLE] = str(log)
        try:
            yield used
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before
            lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
            used.checksums = checksums_of(Path(line) for line in lines)


def checksums_of(files: Iterator[Path]) -> dict[str, str]:
    """{path below data/checkpoints: sha256} of those files that are shipped weights."""
    found = {}
    for file in sorted(set(files)):
        if file.is_relative_to(SHIPPED) and file.is_file():
            found[file.relative_to(SHIPPED).as_posix()] = weights.sha256(file)
    return found


def todays() -> dict[str, str]:
    """{path below data/checkpoints: sha256} of all shipped weights as they are now."""
    return checksums_of(SHIPPED.rglob("*.safetensors"))


def listed() -> dict[str, str]:
    """The checksums that data/checkpoints.json gives."""
    path = ROOT / "data" / "checkpoints.json"
    return json.loads(path.read_text(encoding="utf-8"))
