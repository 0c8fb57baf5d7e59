"""Small networks and small films that several tests share. Every number here comes from a seed that is given."""
import numpy as np
import torch

from vldm_mini.autoencoder import AutoencoderConfig
from vldm_mini.unet import UNet, UNetConfig

UNET = UNetConfig(channels=(16, 32), attention=(False, True), head_channels=16, emb_channels=64, labels=(4, 9))
AUTOENCODER = AutoencoderConfig((16, 24))


def normal(*shape, seed=0):
    """Standard normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(module, size=0.1, seed=0):
    """Every parameter moved, those that start at zero included: a fresh network answers 0, and 0 = 0 checks nothing."""
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
    """Two dictionaries of tensors, equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def made_folder(folder, classes=("left", "right"), clips=3, frames=12, size=32):
    """Folders of frames: a bright bar that moves left or right over a ground of the clip's own grey. -> folder."""
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
