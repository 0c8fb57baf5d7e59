"""Share of a training step at size s that is neither network, gradient nor optimiser.

Processor time of the image stage: drawing windows, labels and noise, clipping, averaging weights,
keeping the record. Three runs; no other load, or the shares differ.
"""
import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory

import torch

from vldm_mini.training import Objective, Watch
from vldm_mini.training.data import Latents
from vldm_mini.training.loop import Run
from vldm_mini.training.losses import diffusion_loss
from vldm_mini.training.sizes import DRIVING
from vldm_mini.training.stages.image import OPTIONS
from vldm_mini.unet import UNet

RUNS, STEPS = 3, 6


def run() -> dict:
    """{bookkeeping_percent, _spread, step_ms}."""
    found = [measure(seed) for seed in range(RUNS)]
    shares = [100 * share for share, _ in found]
    return dict(bookkeeping_percent=round(sum(shares) / RUNS, 2),
                bookkeeping_percent_spread=round(max(shares) - min(shares), 2),
                step_ms=round(1000 * sum(seconds for _, seconds in found) / RUNS, 1))


def measure(seed: int) -> tuple[float, float]:
    """-> (share of bookkeeping, seconds of processor time of a step)."""
    dial = DRIVING["s"]
    torch.manual_seed(seed)
    theta = UNet(replace(dial.unet, labels=(2, 5)))
    clips = [torch.randn(16, 4, 16, 32).half() for _ in range(100)]
    names = ("light", ("day", "night")), ("cars", tuple("01234"))
    latents = Latents(clips, torch.zeros(100, 2, dtype=torch.long), names, 1.875)
    loss = diffusion_loss(theta, latents, 1, 1, theta.schedule, theta.prediction, OPTIONS)
    settings = replace(dial.stages["image"], precision="fp32")
    inside = [0.0]

    def timed(function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = time.process_time()
            found = function(*args, **kwargs)
            inside[0] += time.process_time() - start
            return found
        return call
    with TemporaryDirectory() as folder:
        run = Run(folder, settings, [Objective("image", theta, loss, muon=True)], False, {})
        theta.forward = timed(theta.forward)
        for optimizer in run.optimizers[0]:
            optimizer.step = timed(optimizer.step)
        backward = torch.Tensor.backward
        torch.Tensor.backward = timed(backward)
        try:
            run.one_step(0)
            inside[0], start = 0.0, time.process_time()
            for step in range(1, STEPS + 1):
                run.one_step(step)
            run.note(Watch(), validate=False)
            whole = time.process_time() - start
        finally:
            torch.Tensor.backward = backward
    return 1 - inside[0] / whole, whole / STEPS
