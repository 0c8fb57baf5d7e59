"""The flight recorder: what was set, where a run took place and how it went, in one JSON file."""
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from .. import machine
from ..weights import read_json, write_text

LEVELS = 10                                   # bins of tau in which the recorder keeps the loss


@dataclass
class Record:
    """One run. A row every so many steps: step, minutes, process minutes, losses, loss a level."""
    settings: dict = field(default_factory=dict)
    where: dict = field(default_factory=dict)
    rows: list = field(default_factory=list)
    strips: list = field(default_factory=list)         # names of the pictures from the same noise
    minutes: float = 0.0
    process_minutes: float = 0.0                       # processor time: what a busy machine keeps

    def save(self, folder: str | Path) -> None:
        """Write folder/record.json."""
        write_text(Path(folder) / "record.json", json.dumps(asdict(self), indent=None) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Record":
        """Read folder/record.json. Raises FileNotFoundError where there is none."""
        path = Path(folder) / "record.json"
        if not path.is_file():
            raise FileNotFoundError(f"no record.json in {folder}; a running or finished training "
                                    "writes one")
        return cls(**read_json(path))


def provenance(device: torch.device | None = None) -> dict:
    """Commit, versions and hardware of this run."""
    try:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True,
                             text=True, cwd=Path(__file__).parent)
        commit = git.stdout.strip()
    except OSError:
        commit = ""
    device = device or machine.device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return dict(commit=commit or "unknown", torch=str(torch.__version__),
                python=platform.python_version(), device=name, threads=torch.get_num_threads(),
                processor=platform.machine())
