"""What every test and notebook runs with: size xs, fp32, the threads that the container may use."""
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _environment():
    """Set before torch is imported; kernels and commands that tests start inherit it."""
    from vldm_mini import machine  # imports no torch

    os.environ["VLDM_SIZE"] = "xs"
    os.environ["VLDM_PRECISION"] = "fp32"          # no timing decides what a test computes
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    os.environ["OMP_NUM_THREADS"] = str(max(1, machine.threads() // workers))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")   # no test needs the network
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
    """Notebooks: compare no output that depends on the machine.

    One whose metadata gives a reason under vldm.skip_test is skipped before a kernel starts.
    """
    if not hasattr(collector, "skip_compare"):     # only nbval's file collector has it
        return
    collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
    book = json.loads(Path(collector.path).read_text(encoding="utf-8"))
    reason = book["metadata"].get("vldm", {}).get("skip_test")
    if reason:
        collector.collect = lambda: pytest.skip(reason)
