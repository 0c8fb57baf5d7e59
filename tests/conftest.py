"""What every test and every notebook under test runs with: size xs, fp32, as many threads as the container may use."""
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _environment():
    """Set before torch is imported, and inherited by the notebooks' kernels and by commands that tests start."""
    from vldm_mini import machine  # imports no torch

    os.environ["VLDM_SIZE"] = "xs"
    os.environ["VLDM_PRECISION"] = "fp32"                                  # no stop-watch decides what a test computes
    os.environ["OMP_NUM_THREADS"] = str(machine.threads())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")                           # no test needs the network
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


_environment()


@pytest.fixture
def real_data():
    """The folder of real clips that VLDM_DATA names; the test is skipped where there is none."""
    folder = Path(os.environ.get("VLDM_DATA", ""))
    if not os.environ.get("VLDM_DATA") or not (folder / "actions").is_dir():
        pytest.skip("needs VLDM_DATA: a folder that holds `actions`")
    return folder


def pytest_collectstart(collector):
    """Notebooks: compare no output that depends on the machine; skip one that asks for it before a kernel starts."""
    if hasattr(collector, "skip_compare"):                                 # nbval's file collector
        collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
        wish = json.loads(Path(collector.path).read_text(encoding="utf-8"))["metadata"].get("vldm", {}).get("skip_test")
        if wish:
            collector.collect = lambda: pytest.skip(wish)
