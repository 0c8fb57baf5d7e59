"""vldm_mini: Video LDM ("Align your Latents", arXiv 2304.08818) as a small package.

A good order to read it in, one idea a module: `diffusion`, `blocks`, `unet`, `temporal`,
`autoencoder`, `context`, `upsampler`, `pipeline`, `boxes`; then the folder `training`.

    from vldm_mini import VideoLDM
    model = VideoLDM.from_pretrained("actions")

`import vldm_mini` imports nothing else: each name below is imported when it is first used.
"""
import importlib

__version__ = "0.1.0"

# name -> the module that defines it
_PUBLIC = {
    "Schedule": "schedule", "ScheduleConfig": "schedule", "ddim": "diffusion",
    "ddim_times": "diffusion", "guided": "diffusion",
    "UNet": "unet", "UNetConfig": "unet",
    "Clip": "temporal", "InsertionPoint": "temporal", "TemporalLayers": "temporal",
    "VideoModel": "temporal", "insert": "temporal",
    "Autoencoder": "autoencoder", "AutoencoderConfig": "autoencoder", "VideoDecoder": "autoencoder",
    "VideoUpsampler": "upsampler",
    "PipelineConfig": "pipeline", "VideoLDM": "pipeline", "BoxImageLDM": "boxes",
}
_MODULES = (
    "autoencoder", "blocks", "boxes", "context", "datasets", "diffusion", "evaluation",
    "insertion", "lab", "latent_model", "machine", "pipeline", "schedule", "stable_diffusion",
    "teaching", "temporal", "training", "unet", "upsampler", "weights",
)
__all__ = sorted([*_PUBLIC, *_MODULES])


def __getattr__(name: str) -> object:
    """Import a public name or a module on first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, for tab completion."""
    return sorted([*__all__, "__version__"])
