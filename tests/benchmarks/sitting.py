"""One sitting on this machine: `train all --minutes M` from random weights, and what each step
costs.

VLDM_SITTING="driving m 9 runs/sitting" sets data, size, minutes and folder; `channels_last` or
`compile` after them switches that option on. A stage's matrix rate is
what torch counts as products and convolutions, forward and backward, over the wall time of a step;
its share is of the rate of one large matrix product in the same number format here.
"""
import json
import os
import time
from pathlib import Path

import torch

from vldm_mini import machine
from vldm_mini.training import Record
from vldm_mini.training.stages import STAGES, Request, stages_for, train_all

DEFAULT = "driving m 9 runs/sitting"


def run() -> dict:
    """Train, then collect {stage_steps, stage_ms, stage_gflop, stage_share, ...}."""
    data, size, minutes, out, *options = os.environ.get("VLDM_SITTING", DEFAULT).split()
    began, device = time.monotonic(), machine.device()
    train_all(Request(data=data, size=size, minutes=float(minutes), out=Path(out), progress=False,
                      **dict.fromkeys(options, True)))
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = matrix_gflops(device, machine.probe_precision(device))
    figures = dict(minutes=round((time.monotonic() - began) / 60, 2), matrix_gflops=round(rate))
    minutes_of = json.loads((Path(out) / "minutes.json").read_text())
    for name in stages_for(data):
        folder = Path(out) / name
        if name.startswith("upsampler_"):
            folder = Path(out) / "upsampler" / name.removeprefix("upsampler_")
        cost = json.loads((folder / "steps.json").read_text())
        record = Record.load(folder)
        figures |= {
            f"{name}_steps": cost["steps"], f"{name}_ms": round(1000 * cost["seconds"], 2),
            f"{name}_gflop": cost["gflop"], f"{name}_peak_mb": cost["peak_memory_mb"],
            f"{name}_share": round(cost["gflop"] / cost["seconds"] / rate, 4),
            f"{name}_minutes": minutes_of[name],
            f"{name}_training_minutes": round(record.minutes, 3),
            f"{name}_loss": record.rows[-1]["losses"][record_name(record)]}
    return figures


def record_name(record: Record) -> str:
    """The name of the first objective of a run in its losses."""
    names = [name for name in STAGES if name in record.rows[-1]["losses"]]
    return names[0] if names else next(iter(record.rows[-1]["losses"]))


def matrix_gflops(device: torch.device, precision: str, n: int = 0) -> float:
    """Best of ten n x n products on random numbers, in 1e9 operations a second."""
    n = n or (8192 if device.type == "cuda" else 1024)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        machine.synchronize(device)
        start = time.perf_counter()
        a @ b
        machine.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best / 1e9
