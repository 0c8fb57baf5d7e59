"""Weights as safetensors with a JSON config and a model card, and the state of a run.

Weights are saved and loaded the Hugging Face way (`save_pretrained`, `from_pretrained`). Nothing is
pickled: the state of a run is tensors in safetensors with its structure as JSON. How files are
written and locked stands in `files`. Chapter 03 saves and loads the first model.
"""
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .files import locked, remove_dead_parts, replacing, sha256, writable, write_text

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SCALE = ".scale"          # suffix of the float scales that belong to a tensor stored in 8 bits
STRUCTURE = "structure"   # key of the JSON in the header of a state file

__all__ = [
    "CARD", "CONFIG", "Pretrained", "RELEASES", "WEIGHTS", "list_shipped", "load_config",
    "load_into", "load_state", "load_tensors", "locked", "packed", "parameter_table", "read_json",
    "remove_dead_parts", "replacing", "save_state", "save_tensors", "sha256", "shipped", "unpacked",
    "writable", "write_text",
]
Module = TypeVar("Module", bound=nn.Module)


# --------------------------------------------------------------------------------------------------
# Tensors.

def save_tensors(path: Path | str, tensors: dict[str, Tensor],
                 metadata: dict[str, str] | None = None) -> None:
    """Dictionary of tensors -> one safetensors file. Raises OSError (see `replacing`)."""
    from safetensors.torch import save
    data = save(_separate(tensors), metadata)
    with replacing(path) as beside:
        beside.write_bytes(data)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own, as safetensors demands."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def load_tensors(path: Path | str, cure: str = "fetch or save it again") -> dict[str, Tensor]:
    """One safetensors file -> dictionary of tensors on the CPU; 8-bit weights become float32.

    cure: what the reader can do about a damaged file ("delete it", for a cache). Raises
    FileNotFoundError, OSError (it may not be read), ValueError (damaged).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load
    if log := os.environ.get("VLDM_WEIGHTS_LOG"):      # which weights a stored result depends on
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{Path(path).resolve()}\n")
    try:
        return unpacked(load(_read(path, f"no weights at {path}; train them, or give the folder "
                                         "that holds them")))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); {cure}") from error


def _read(path: Path | str, missing: str) -> bytes:
    """The bytes of a file. Raises FileNotFoundError with `missing`, OSError naming the file."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(missing) from error
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror or error}); it may be whole: change "
                      "its permissions, or copy it to where you may read it") from error


def packed(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Weights in the format in which they are stored: a float type, or torch.int8 for 8 bits.

    In 8 bits each row of a matrix has a float scale of its own; rounding to 127 levels a row is off
    by about a hundredth of the row's weights. Numbers and vectors stay in half precision.
    """
    found = dict(tensors)
    floats = torch.float16 if dtype == torch.int8 else dtype
    for name, x in tensors.items():
        if x.is_floating_point() and x.ndim:
            found[name] = x.to(floats)
        if x.is_floating_point() and x.ndim > 1 and dtype == torch.int8:
            rows = x.detach().float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            found[name + SCALE] = scale
            found[name] = (rows / scale[:, None]).round().to(torch.int8).view(x.shape)
    return found


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that `packed` stored in 8 bits as float32; all others as they are."""
    found = dict(tensors)
    for name in tensors:
        if name + SCALE in tensors:
            scale, x = found.pop(name + SCALE), tensors[name]
            found[name] = x * scale.view(-1, *[1] * (x.ndim - 1))
    return found


def load_into(module: Module, tensors: dict[str, Tensor], source: str = "the checkpoint") -> Module:
    """Strict loading. Returns the module.

    Raises ValueError naming the first tensor that does not fit; the module is then unchanged.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors:
            where = source if name in own else "the model"
            raise ValueError(f"{source} is of another model: {name} is missing in {where}")
        if own[name].shape != tensors[name].shape:
            raise ValueError(f"{source} is of another size: {name} is {tuple(tensors[name].shape)} "
                             f"there and {tuple(own[name].shape)} here; use the --size that it was "
                             "trained with")
    module.load_state_dict({name: x.to(own[name].dtype) for name, x in tensors.items()})
    return module


# --------------------------------------------------------------------------------------------------
# The state of a run: nested dictionaries, lists and tuples of tensors, numbers, text and None.

def save_state(path: Path | str, state: Any) -> None:
    """Any nesting of dict, list and tuple around tensors, numbers, text, bool and None -> one file.

    Tensors are stored as safetensors, the structure around them as JSON in the same file's header.
    Raises TypeError naming a value of another kind, OSError (see `replacing`).
    """
    tensors: dict[str, Tensor] = {}
    structure = _describe(state, "state", tensors)
    save_tensors(path, tensors, {STRUCTURE: json.dumps(structure)})


def load_state(path: Path | str, device: torch.device | str = "cpu") -> Any:
    """What `save_state` wrote, with its tensors on `device`.

    Raises FileNotFoundError, OSError (it may not be read), ValueError (damaged).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load
    data = _read(path, f"no state of a run at {path}")
    try:
        tensors = load(data)
        header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
        structure = json.loads(header["__metadata__"][STRUCTURE])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint of a run; "
                         "delete it to start this run anew") from error
    return _rebuild(structure, {name: x.to(device) for name, x in tensors.items()})


def _describe(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go into `tensors` under the path that leads to them.

    A dictionary becomes {"dict": pairs}, since JSON knows no keys but text; a tuple becomes
    {"tuple": items}, a tensor {"tensor": name}.
    """
    if isinstance(value, Tensor):
        while name in tensors:                 # {"a": {"b": x}, "a.b": y}: two paths read the same
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, name), _describe(item, f"{name}.{key}", tensors)]
                         for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_describe(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    return _plain(value, name)


def _plain(value: Any, name: str) -> Any:
    """The value, if it is one that JSON keeps exactly."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} holds a {type(value).__name__}: a state may hold tensors, numbers, "
                    "text, None, and dict, list or tuple of these")


def _rebuild(structure: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_describe`."""
    if isinstance(structure, list):
        return [_rebuild(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    (kind, content), = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_rebuild(item, tensors) for item in content)
    return {key: _rebuild(item, tensors) for key, item in content}


# --------------------------------------------------------------------------------------------------
# Models: weights, config and card in one folder.

class Pretrained:
    """save_pretrained and from_pretrained for a module that has a `config`, an instance of the
    dataclass `config_class`."""

    def save_pretrained(self, folder: Path | str, card: str = "",
                        dtype: torch.dtype = torch.float16) -> None:
        """Weights (see `packed`), config and model card into `folder`."""
        save_tensors(Path(folder) / WEIGHTS, packed(self.state_dict(), dtype))
        config = dataclasses.asdict(self.config)
        write_text(Path(folder) / CONFIG, json.dumps(config, indent=1) + "\n")
        if card:
            write_text(Path(folder) / CARD, card)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Pretrained":
        """The model in `folder`, in float32 and evaluation mode, on the CPU.

        Raises FileNotFoundError, OSError, ValueError naming the file that is missing or damaged.
        """
        config = load_config(cls.config_class, Path(folder) / CONFIG)
        return load_into(cls(config), load_tensors(Path(folder) / WEIGHTS), str(folder)).eval()


def read_json(path: Path | str, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """A JSON file that holds one object, with at least these keys.

    Raises FileNotFoundError, OSError (it may not be read), ValueError (damaged, or keys missing).
    """
    missing_file = f"no {Path(path).name} at {path}; give the folder that save_pretrained wrote"
    data = _read(path, missing_file)
    cure = "fetch or save it again"
    try:
        values = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}); {cure}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged, it holds no JSON object; {cure}")
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"{path} is damaged, it lacks {', '.join(missing)}; {cure}")
    return values


def load_config(config_class: type, path: Path | str) -> Any:
    """A JSON file -> an instance of a frozen dataclass; lists become tuples, and a field whose
    default is a dataclass is one again.

    Raises as `read_json`, and ValueError for fields that the class does not have.
    """
    return _config(config_class, read_json(path), path)


def _config(config_class: type, values: dict[str, Any], path: Path | str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise ValueError(f"{path} has settings that {config_class.__name__} does not know: "
                         f"{', '.join(unknown)}; it was saved by another version")
    found = {}
    for name, value in values.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            found[name] = _config(type(default), value, path)
        else:
            found[name] = _tuples(value)
    return config_class(**found)


def _tuples(value: Any) -> Any:
    """Lists, nested ones too, as tuples, which JSON does not have."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def parameter_table(module: nn.Module, depth: int = 1) -> str:
    """A table of a module's parts with their numbers of tensors and parameters."""
    parts: dict[str, list[int]] = {}
    for name, p in module.named_parameters():
        parts.setdefault(".".join(name.split(".")[:depth]), []).append(p.numel())
    rows = [f"{name:<24}{len(sizes):>6} tensors{sum(sizes):>14,}" for name, sizes in parts.items()]
    total = sum(sum(sizes) for sizes in parts.values())
    return "\n".join([*rows, f"{'total':<38}{total:>14,}"])


# --------------------------------------------------------------------------------------------------
# The weights that ship with the project.

# Where data/checkpoints is served, with a slash at the end. Empty until the project has an address.
RELEASES = os.environ.get("VLDM_WEIGHTS_URL", "")


def list_shipped(root: Path | str) -> dict[str, str]:
    """{path below data/checkpoints: sha256} of all shipped weights, as in data/checkpoints.json."""
    files = [path for path in sorted(Path(root).rglob("*")) if path.name in (WEIGHTS, CONFIG)]
    return {path.relative_to(root).as_posix(): sha256(path) for path in files}


def shipped(name: Path | str) -> Path:
    """The folder of the shipped weights called `name`, or `name` itself if it holds weights.

    In a clone they lie in data/checkpoints; an installed package fetches them once, checked by
    sha256. Raises FileNotFoundError (no such weights), ConnectionError, ValueError (sha256).
    """
    root = Path(__file__).resolve().parents[1] / "data" / "checkpoints"
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    if (root / name).parent == root and (root / name).is_dir():    # some hold an upsampler only
        return root / name
    listed = Path(__file__).parent / "data" / "checkpoints.json"   # where a wheel puts it
    files = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
    if not any(path.startswith(f"{name}/") for path in files):
        raise FileNotFoundError(f"no weights called {str(name)!r}: give the name of shipped ones, "
                                "or a folder that python -m vldm_mini train has filled")
    return _fetch_weights(str(name), files)


def _fetch_weights(name: str, files: dict[str, str]) -> Path:
    """Download the files of `name` that the cache does not hold. Returns their folder there."""
    import pooch

    from . import __version__
    if not RELEASES:
        raise FileNotFoundError(f"the weights {name!r} lie in the repository's data/checkpoints, "
                                "and this package was installed without it: clone it, or set "
                                "VLDM_WEIGHTS_URL to where it is served")
    cache = Path(pooch.os_cache("vldm_mini")) / f"checkpoints-{__version__}"
    for path in (path for path in files if path.startswith(f"{name}/")):
        try:
            pooch.retrieve(RELEASES + path, "sha256:" + files[path], fname=Path(path).name,
                           path=(cache / path).parent, progressbar=True)
        except ValueError as error:
            raise ValueError(f"{path} came with another sha256 than the package lists; "
                             "try again later") from error
        except OSError as error:
            raise ConnectionError(f"{path} could not be fetched ({error}); "
                                  "clone the repository, which holds it") from error
    return cache / name
