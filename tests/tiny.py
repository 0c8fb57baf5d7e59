"""Small networks, weights and clips that several tests share, all from given seeds."""
import json
from dataclasses import asdict

import numpy as np
import torch

from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.pipeline import PipelineConfig
from vldm_mini.temporal import extend, insert
from vldm_mini.unet import UNet, UNetConfig
from vldm_mini.weights import write_text

UNET = UNetConfig(channels=(16, 32), attention=(False, True), head_channels=16, emb_channels=64,
                  labels=(4, 9))
AUTOENCODER = AutoencoderConfig((16, 24))
LABEL_NAMES = (("action", ("wave", "jump", "bend", "sit")),
               ("person", tuple(f"person {i}" for i in range(9))))
PIPELINE = PipelineConfig(
    LABEL_NAMES, pixels=16, frames=4, fps=8.0, steps=2, label_guidance=1.5, temporal_guidance=2.0,
    temporal_guidance_above=200, eta=1.0, guide_labels_with_context=True, context_order=2,
    context_power=1.5, anchored=True)


def normal(*shape, seed=0):
    """Standard normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(module, size=0.1, seed=0):
    """Every parameter moved, also those that start at zero: a fresh network always gives 0."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p += size * torch.randn(p.shape, generator=generator)
    return module


def tiny_unet(seed=0, **changes):
    """A U-Net of two resolutions with all its weights random."""
    torch.manual_seed(seed)
    return shaken(UNet(UNetConfig(**{**vars(UNET), **changes})), seed=seed).eval()


def copies(module):
    """{name: copy of the tensor} of all parameters and buffers."""
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


def same(a, b):
    """Two dictionaries of tensors, equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def random_weights(folder, config=PIPELINE, whole=False):
    """A folder as training leaves it, with random weights: autoencoder, image, temporal, config.

    whole: prediction, interpolation and temporal decoder as well. -> folder.
    """
    torch.manual_seed(0)
    shaken(Autoencoder(AUTOENCODER), 0.05).save_pretrained(folder / "autoencoder")
    theta = tiny_unet()
    layers = insert(theta, ff_mult=1, ff_in=False)
    theta.save_pretrained(folder / "image")
    shaken(layers, 0.3).save_pretrained(folder / "temporal")
    write_text(folder / "config.json", json.dumps(asdict(config)))
    if whole:
        for stage, options in (("prediction", {}), ("interpolation", {"regimes": 2})):
            theta = tiny_unet()
            layers = insert(theta, ff_mult=1, ff_in=False)
            layers = extend(layers, theta, context_channels=5, **options)
            shaken(layers, 0.2).save_pretrained(folder / stage)
        decoder = insert(Autoencoder(AUTOENCODER).decoder, attention=None)
        shaken(decoder, 0.1).save_pretrained(folder / "decoder")
    return folder


class TargetModel(torch.nn.Module):
    """Stands in for a network: its clean sample is target(arguments), whatever z is.

    Sampling from it gives exactly that target, with any steps. Keeps the arguments of its calls,
    tau among them. prediction: what it returns, "v", "eps" or "x0".
    """

    def __init__(self, schedule, target, prediction="v"):
        super().__init__()
        self.schedule, self.target, self.prediction, self.calls = schedule, target, prediction, []

    def forward(self, z, tau, **arguments):
        self.calls.append(arguments | {"tau": tau})
        x = torch.as_tensor(self.target(**arguments)).expand_as(z).float()
        if self.prediction == "x0":
            return x
        alpha_tau, sigma_tau = self.schedule.at(tau, z)
        if self.prediction == "eps":
            return (z - alpha_tau * x) / sigma_tau
        return (alpha_tau * z - x) / sigma_tau


def made_folder(folder, classes=("left", "right"), clips=3, frames=12, size=32):
    """Folders of frames: a bright bar that moves left or right over a grey ground. -> folder."""
    from PIL import Image
    for k, name in enumerate(classes):
        for i in range(clips):
            path = folder / name / f"clip{i}"
            path.mkdir(parents=True)
            for t in range(frames):
                picture = np.full((size, size, 3), 30 + 20 * i, dtype=np.uint8)
                at = (3 * t + 5 * i) % size
                picture[:, [at if k else size - 1 - at]] = (250, 200, 80)
                Image.fromarray(picture).save(path / f"{t:03d}.png")
    return folder
