"""Weights on disk: safetensors, a JSON config and a model card, saved and loaded the Hugging Face way. No pickles.

A file is written beside its place and then renamed, so that a full disk or a kill leaves the old file whole.
"""
import dataclasses
import errno
import hashlib
import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import torch

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SCALE = ".scale"                              # of a tensor that is stored in 8 bits: beside it, one a row


@contextmanager
def replacing(path):
    """Gives a path beside `path` to write to; renames it on success, removes it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror or error}); what stood there is untouched. "
                      "Free some space or choose another folder.") from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path, text):
    """Write text whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def sha256(path):
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path, tensors):
    """Dictionary of tensors -> one safetensors file."""
    from safetensors.torch import save
    with replacing(path) as beside:
        beside.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def packed(tensors, dtype=torch.float16):
    """Weights as they are stored: in that float format, or with int8 in 8 bits, each row of a matrix with its scale.

    Rounding to 127 steps a row is off by about a hundredth of a row's weights. Numbers and vectors stay in half.
    """
    out = dict(tensors)
    for name, x in tensors.items():
        if x.is_floating_point() and x.ndim:
            out[name] = x.to(torch.float16 if dtype == torch.int8 else dtype)
        if x.is_floating_point() and x.ndim > 1 and dtype == torch.int8:
            rows = x.detach().float().flatten(1)
            out[name + SCALE] = rows.abs().amax(1).clamp(min=1e-12) / 127
            out[name] = (rows / out[name + SCALE][:, None]).round().to(torch.int8).view(x.shape)
    return out


def unpacked(tensors):
    """What `packed` stored in 8 bits as float32, all else as it is."""
    rows = [name for name in tensors if name + SCALE in tensors]
    scales = {name: tensors.pop(name + SCALE) for name in rows}
    return tensors | {name: tensors[name] * scales[name].view(-1, *[1] * (tensors[name].ndim - 1)) for name in rows}


def save_state(path, state):
    """A checkpoint of training: nested lists and dictionaries of tensors, numbers and text -> one file."""
    with replacing(path) as beside:
        try:
            torch.save(state, beside)
        except RuntimeError as error:                 # all that torch.save says when the disk is full
            raise OSError(errno.ENOSPC, "the disk may be full") from error


def load_state(path, device="cpu"):
    """What save_state wrote. Raises ValueError if it is damaged."""
    try:
        with torch.serialization.safe_globals([torch.torch_version.TorchVersion]):  # in the record of early checkpoints
            return torch.load(path, weights_only=True, map_location=device)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint; delete it to start this run anew") from error


def load_tensors(path):
    """One safetensors file -> dictionary of tensors. Raises FileNotFoundError, ValueError (not such a file)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; train them, or give the folder that holds them")
    try:
        return unpacked(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); fetch or save it again") from error


def load_into(module, tensors, source="the checkpoint"):
    """Strict load with an error that names the first tensor that does not fit and what to do."""
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors:
            where = "the model" if name not in own else source
            raise ValueError(f"{source} is of another model: {name} is missing in {where}")
        if own[name].shape != tensors[name].shape:
            raise ValueError(f"{source} is of another size: {name} is {tuple(tensors[name].shape)} there and "
                             f"{tuple(own[name].shape)} here; use the --size that it was trained with")
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()})
    return module


class Pretrained:
    """save_pretrained and from_pretrained for a module that has `config` (a dataclass) and `config_class`."""

    def save_pretrained(self, folder, card="", dtype=torch.float16):
        """Weights (see `packed`), config and model card into `folder`."""
        save_tensors(Path(folder) / WEIGHTS, packed(self.state_dict(), dtype))
        write_text(Path(folder) / CONFIG, json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")
        if card:
            write_text(Path(folder) / CARD, card)

    @classmethod
    def from_pretrained(cls, folder):
        """The model in `folder`, in float32 and evaluation mode."""
        config = load_config(cls.config_class, Path(folder) / CONFIG)
        return load_into(cls(config), load_tensors(Path(folder) / WEIGHTS), str(folder)).eval()


def load_config(config_class, path):
    """JSON -> frozen dataclass. Raises FileNotFoundError, and ValueError for fields that the class does not have."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {CONFIG} at {path}; give the folder that save_pretrained wrote")
    try:
        values = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no config; fetch or save it again") from error
    unknown = values.keys() - {field.name for field in dataclasses.fields(config_class)}
    if unknown:
        raise ValueError(f"{path} has settings that {config_class.__name__} does not know: "
                         f"{', '.join(sorted(unknown))}; it was saved by another version")
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def parameter_table(module, depth=1):
    """A table of parts and their numbers of parameters, as text."""
    parts = {}
    for name, p in module.named_parameters():
        parts.setdefault(".".join(name.split(".")[:depth]), []).append(p.numel())
    rows = [f"{name:<24}{len(sizes):>6} tensors{sum(sizes):>14,}" for name, sizes in parts.items()]
    total = sum(map(sum, parts.values()))
    return "\n".join(rows + [f"{'total':<38}{total:>14,}"])


# ---------------------------------------------------------------------------------------------------------------------
# The weights that ship with the project.

# where data/checkpoints is served, a slash at the end; stays empty until the project has a public address
RELEASES = os.environ.get("VLDM_WEIGHTS_URL", "")


def list_shipped(root):
    """{path below data/checkpoints: sha256} of all shipped weights: what data/checkpoints.json holds."""
    files = (path for path in sorted(Path(root).rglob("*")) if path.name in (WEIGHTS, CONFIG))
    return {path.relative_to(root).as_posix(): sha256(path) for path in files}


def shipped(name):
    """The folder of shipped weights called `name`, or `name` itself if it is a folder with a config.

    In a clone they lie in data/checkpoints; an installed package fetches them once, checked by sha256.
    """
    root = Path(__file__).resolve().parents[1] / "data" / "checkpoints"
    for folder in (Path(name), root / name):
        if (folder / CONFIG).is_file() or folder.parent == root and folder.is_dir():     # some hold an upsampler alone
            return folder
    listed = Path(__file__).parent / "data" / "checkpoints.json"             # where an installed package has it
    files = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    if not any(path.startswith(f"{name}/") for path in files):
        raise FileNotFoundError(f"no weights called {name!r}: give the name of shipped ones, or a folder that "
                                f"python -m vldm_mini train has filled")
    return _fetch_weights(name, files)


def _fetch_weights(name, files):
    import pooch

    from . import __version__
    if not RELEASES:
        raise FileNotFoundError(f"the weights {name!r} lie in the repository's data/checkpoints and this package was "
                                "installed without it: clone it, or set VLDM_WEIGHTS_URL to where it is served")
    cache = Path(pooch.os_cache("vldm_mini")) / f"checkpoints-{__version__}"
    for path in (path for path in files if path.startswith(f"{name}/")):
        try:
            pooch.retrieve(RELEASES + path, "sha256:" + files[path], fname=Path(path).name,
                           path=(cache / path).parent, progressbar=True)
        except ValueError as error:
            raise ValueError(f"{path} came with another sha256 than the package lists; try again later") from error
        except OSError as error:
            raise ConnectionError(f"{path} could not be fetched ({error}); "
                                  "clone the repository, which holds it") from error
    return cache / name
