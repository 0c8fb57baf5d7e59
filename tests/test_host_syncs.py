"""The loop never waits for the device between two rows of its record.

On a GPU, reading a tensor on the host (`.item()`, `.cpu()`, `bool(tensor)`, a shape that depends on
values) stops the host until the device has caught up.
"""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import normal, tiny_unet
from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.diffusion import Schedule
from vldm_mini.temporal import VideoModel, extend, insert
from vldm_mini.training import BatchRandom, Objective, Settings, Watch, loop
from vldm_mini.training.data import FrameStore, Latents
from vldm_mini.training.loop import Run
from vldm_mini.training.losses import (
    ContextOptions,
    LossOptions,
    diffusion_loss,
    interpolation_context,
    prediction_context,
)
from vldm_mini.training.stages import autoencoder as autoencoder_stage

SCHEDULE = Schedule.linear()
OPTIONS = LossOptions(tau=(0.0, 1.0), stratified=True, temporal_difference=8.0)
NAMES = (("action", ("a", "b", "c", "d")), ("person", tuple("012345678")))
LATENTS = Latents([normal(8, 4, 8, 8, seed=i).half() for i in range(4)],
                  torch.tensor([[0, 1], [1, 2], [2, 3], [3, 8]]), NAMES, 8.0)


OPTIONS_OF_FRAMES = LossOptions(tau=(0.0, 1.0), stratified=True)
META = torch.device("meta")


def image():
    theta = tiny_unet()
    loss = diffusion_loss(theta, LATENTS, 1, 1, SCHEDULE, options=OPTIONS_OF_FRAMES)
    return [Objective("image", theta, loss, muon=True)]


def temporal():
    theta = tiny_unet().requires_grad_(False)
    layers = insert(theta, ff_mult=1, ff_in=False)
    loss = diffusion_loss(VideoModel(theta, layers), LATENTS, 3, 2, SCHEDULE, options=OPTIONS)
    return [Objective("temporal", layers, loss, muon=True)]


def prediction():
    theta = tiny_unet().requires_grad_(False)
    layers = extend(insert(theta, ff_mult=1, ff_in=False), theta, context_channels=5)
    model = VideoModel(theta, layers)
    context = prediction_context(model, SCHEDULE, "v", ContextOptions(self_generated=0.5))
    loss = diffusion_loss(model, LATENTS, 4, 2, SCHEDULE, options=OPTIONS, context=context)
    return [Objective("prediction", layers, loss, muon=True)]


def interpolation():
    theta = tiny_unet().requires_grad_(False)
    layers = insert(theta, ff_mult=1, ff_in=False)
    layers = extend(layers, theta, context_channels=5, regimes=2)
    options = LossOptions(anchored=True, regime_weights=(0.4, 1.6))
    context = interpolation_context(SCHEDULE, ContextOptions())
    loss = diffusion_loss(VideoModel(theta, layers), LATENTS, 5, 1, SCHEDULE, options=options,
                          context=context)
    return [Objective("interpolation", layers, loss, muon=True)]


def autoencoder():
    frames = torch.zeros(6, 16, 16, 3, dtype=torch.uint8)
    store = FrameStore([frames], META, 1)
    draw_frames = autoencoder_stage.store_frames(store)
    # the critic joins at once
    return autoencoder_stage.objectives(Autoencoder(AutoencoderConfig((8, 16))), draw_frames, 0)


class FakeRandom(BatchRandom):
    """Draws on the fake device, which has no generator."""

    def __init__(self, seed, step, batch, device, part=0, parts=1):
        super().__init__(seed, step, batch, torch.device("cpu"), part, parts)
        self.device, self.generator = device, None


@pytest.mark.parametrize("objectives", [image, temporal, prediction, interpolation, autoencoder])
def test_no_loss_and_no_backward_pass_reads_the_device(objectives, tmp_path, monkeypatch):
    """On torch's fake device a tensor has no values: whoever reads one raises an error."""
    monkeypatch.setattr(loop, "BatchRandom", FakeRandom)
    with META:
        built = objectives()
    settings = Settings(steps=20, batch=4, precision="fp32")
    run = Run(tmp_path, settings, built, False, {})
    assert run.device == META
    for step in range(20):
        for objective in built:
            assert run.backward(step, objective)
    assert all(p.grad is not None and p.grad.device == META for p in run.trained[0])
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run.note(Watch(), validate=False)


class HostReads(TorchDispatchMode):
    """Counts the numbers that the host reads."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_clipping_optimisers_and_average_read_nothing_and_a_row_does(tmp_path):
    run = Run(tmp_path, Settings(steps=20, batch=4, precision="fp32"), temporal(), False, {})
    objective, = run.objectives
    reads = HostReads()
    for step in range(20):
        run.backward(step, objective)
        with reads:
            run.update(step, 0, objective)
            run.ema.update(objective.module)
    assert reads.found == []
    with HostReads() as reads:
        float(run.totals.losses["temporal"][0])
    assert reads.found != [], "the counter counts"
