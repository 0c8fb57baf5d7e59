"""The dial: widths, frames, steps and batch of all stages together.

`xs` is for tests (seconds), `s` for a laptop, `m` for one GPU, `paper` has the paper's widths and
is for counting parameters and for clusters. Steps are what a size is meant to be trained for; a
number of minutes (`--minutes`) replaces them by what fits.
"""
from dataclasses import dataclass, field, replace

from ..autoencoder import AutoencoderConfig
from ..unet import UNetConfig
from .loop import Settings


@dataclass(frozen=True)
class UpsamplerSize:
    """Super-resolution (section 3.4), trained on patches of larger frames."""
    pixels: int                               # height of a large frame
    patch: int                                # side of a training patch, in its pixels (paper: 80)
    frames: int                               # T
    clips: int                                # of `driving`
    widths: dict                              # of an UpsamplerConfig
    # MINI: norms of each position alone: what is trained on patches is used on whole frames
    autoencoder: AutoencoderConfig


@dataclass(frozen=True)
class Size:
    """Everything that one setting of the dial decides."""
    name: str
    pixels: int                               # height of a frame
    width: int                                # of a frame
    frames: int                               # T
    stride: int                               # frames of video between two frames of a clip
    autoencoder: AutoencoderConfig
    unet: UNetConfig
    temporal: dict                            # options of temporal.insert
    upsampler: UpsamplerSize
    stages: dict = field(default_factory=dict)          # stage -> Settings
    clips: int = 0                            # clips of `driving` to train on, 16 key frames each

    def settings(self, stage: str) -> Settings:
        """The Settings of a stage. Raises ValueError for a stage that this data does not have."""
        if stage not in self.stages:
            raise ValueError(f"there is no stage {stage!r} for this data; it has "
                             f"{', '.join(self.stages)}")
        return self.stages[stage]


NAMES = ("xs", "s", "m", "paper")
UPSAMPLER_STAGES = ("upsampler_image", "upsampler_temporal", "latent_upsampler_autoencoder",
                    "latent_upsampler_image", "latent_upsampler_temporal")


def _upsampler_stages(autoencoder: Settings, image: Settings, temporal: Settings) -> dict:
    parts = (image, temporal, autoencoder, image, temporal)
    return dict(zip(UPSAMPLER_STAGES, parts))


# --------------------------------------------------------------------------------------------------
# xs: seconds, for tests.

_XS = Settings(steps=20, batch=8, lr=2e-3)
_XS_CLIPS = Settings(steps=20, batch=2, lr=2e-3)
XS = Size(
    name="xs", pixels=32, width=32, frames=4, stride=2,
    autoencoder=AutoencoderConfig((16, 24)),
    unet=UNetConfig(channels=(16, 32), attention=(False, True), head_channels=16, emb_channels=64),
    temporal=dict(ff_mult=1, ff_in=False),
    upsampler=UpsamplerSize(pixels=64, patch=32, frames=3, clips=4,
                            widths=dict(channels=(16, 24), emb_channels=64),
                            autoencoder=AutoencoderConfig((8, 16), local=True)),
    stages=dict(
        autoencoder=replace(_XS, warmup=20), image=_XS, temporal=_XS_CLIPS,
        decoder=replace(_XS_CLIPS, lr=1e-3, warmup=20),
        prediction=replace(_XS_CLIPS, lr=4e-3 / 3), interpolation=replace(_XS_CLIPS, lr=4e-3 / 3),
        boxes=_XS,
        **_upsampler_stages(Settings(10, 4, 2e-3), Settings(10, 4, 2e-3), Settings(10, 2, 2e-3))),
    clips=12)

# --------------------------------------------------------------------------------------------------
# s: a laptop. Hours are the only thing that makes these models better.

S = Size(
    name="s", pixels=64, width=64, frames=8, stride=3,
    autoencoder=AutoencoderConfig((64, 96)),
    unet=UNetConfig(channels=(64, 96, 128), attention=(True, True, True)),
    temporal=dict(ff_mult=2, ff_in=False),
    upsampler=UpsamplerSize(pixels=256, patch=80, frames=8, clips=400, widths=dict(),
                            autoencoder=AutoencoderConfig((32, 64), local=True)),
    stages=dict(
        autoencoder=Settings(1400, 16, 1.5e-3, warmup=20), image=Settings(16000, 32, 2e-3),
        temporal=Settings(8000, 6, 3e-3), decoder=Settings(2000, 4, 1e-3, warmup=20),
        prediction=Settings(6000, 6, 2e-3), interpolation=Settings(6000, 6, 2e-3),
        boxes=Settings(3000, 16, 2e-3),
        **_upsampler_stages(Settings(900, 16, 1.5e-3, warmup=20), Settings(4000, 12, 2e-3),
                            Settings(2400, 4, 2e-3))),
    clips=1500)

# --------------------------------------------------------------------------------------------------
# m: one GPU. With --minutes 9 all stages fit one sitting; the steps here are an afternoon's.

M = Size(
    name="m", pixels=64, width=64, frames=8, stride=3,
    autoencoder=AutoencoderConfig((96, 160)),
    unet=UNetConfig(channels=(128, 192, 256), attention=(False, True, True), emb_channels=512),
    temporal=dict(ff_mult=2, ff_in=False),
    upsampler=UpsamplerSize(pixels=256, patch=80, frames=8, clips=300,
                            widths=dict(channels=(96, 128)),
                            autoencoder=AutoencoderConfig((64, 96), local=True)),
    # batches that fill an H100: at half of them a step takes hardly less time
    stages=dict(
        autoencoder=Settings(8000, 256, 1.5e-3), image=Settings(30000, 1024, 2e-3),
        temporal=Settings(20000, 128, 2e-3), decoder=Settings(4000, 32, 1e-3),
        prediction=Settings(10000, 128, 1.5e-3), interpolation=Settings(10000, 192, 1.5e-3),
        boxes=Settings(6000, 1024, 1.5e-3),
        **_upsampler_stages(Settings(4000, 128, 1.5e-3), Settings(10000, 256, 2e-3),
                            Settings(8000, 48, 2e-3))),
    clips=1500)

# --------------------------------------------------------------------------------------------------
# paper: f = 8 and a U-Net like Stable Diffusion's; steps, batch and rates as far as they are known.

PAPER = Size(
    name="paper", pixels=256, width=256, frames=8, stride=15,
    autoencoder=AutoencoderConfig((128, 256, 512), blocks=2),
    unet=UNetConfig(channels=(320, 640, 1280, 1280), attention=(True, True, True, False), blocks=2,
                    head_channels=64, emb_channels=1280),
    temporal=dict(),
    upsampler=UpsamplerSize(pixels=512, patch=80, frames=8, clips=80000,
                            widths=dict(channels=(160, 320, 640), blocks=2, emb_channels=640,
                                        attention=(False, False, False)),
                            autoencoder=AutoencoderConfig((128, 256), blocks=2, local=True)),
    stages=dict(
        autoencoder=Settings(100000, 64, 1e-4), image=Settings(400000, 640, 1e-4),
        temporal=Settings(73000, 640, 1e-4), decoder=Settings(20000, 32, 1e-4),
        prediction=Settings(73000, 640, 1e-4), interpolation=Settings(95000, 640, 1e-4),
        boxes=Settings(100000, 640, 1e-4),
        **_upsampler_stages(Settings(100000, 64, 1e-4), Settings(400000, 64, 1e-4),
                            Settings(84000, 32, 1e-5))),
    clips=80000)

SIZES = {size.name: size for size in (XS, S, M, PAPER)}

# MINI: a driving frame is twice as wide. At size s: no attention at its finest resolution, half the
# batch, and key frames follow one another
_DRIVING_S = dict(
    S.stages, image=Settings(24000, 16, 2e-3), temporal=Settings(8000, 3, 3e-3),
    prediction=Settings(8000, 4, 2e-3), interpolation=Settings(8000, 4, 2e-3))
DRIVING = {name: replace(size, stride=1, width=2 * size.pixels) for name, size in SIZES.items()}
DRIVING["s"] = replace(DRIVING["s"], unet=UNetConfig(channels=(64, 96, 128)), stages=_DRIVING_S)


def size_of(name: str, data: str = "actions") -> Size:
    """The Size of that name for that data. Raises ValueError for a name that is not in NAMES."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; choose one of {', '.join(NAMES)}")
    return DRIVING[name] if data == "driving" else SIZES[name]
