"""The catalogue of real data sets, and fetching their files: each file is checked against its
sha256.

A set is taken from a folder that already holds it (`root`, or the folder that VLDM_DATA names),
or it is downloaded once into the user's cache. Chapters 00 and 14 walk through it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class File:
    """One file of a set: its path below the data folder, its checksum, and the url of these
    bytes."""

    path: str
    sha256: str
    bytes: int
    url: str


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue: what the set is, its terms of use, how to cite it, its files."""

    name: str
    title: str
    fps: float
    licence: str
    terms: str
    cite: tuple[str, ...]
    home: str
    files: tuple[File, ...]


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Dataset]:
    """The sets that `fetch` knows, by name, read from `data/catalogue.json`.

    Raises FileNotFoundError if the package was installed without that file.
    """
    # installed: vldm_mini/data/catalogue.json; in a clone: data/catalogue.json beside the package
    folders = Path(__file__).resolve().parents[2:4]
    candidates = [folder / "data" / "catalogue.json" for folder in folders]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no catalogue of data sets at {candidates[0]}: "
                                "install vldm_mini anew")
    sets = {}
    for name, entry in json.loads(found.read_text(encoding="utf-8")).items():
        files = tuple(File(**file) for file in entry["files"])
        sets[name] = Dataset(**(entry | {"name": name, "files": files}))
    return sets


def fetch(name: str, root: str | Path | None = None, cache: str | Path | None = None) -> Path:
    """The folder that holds the files of the set `name`, every one checked against its sha256.

    root: a folder that holds the sets already; by default the one that VLDM_DATA names. Without
    either, the files are downloaded once into `cache`, by default the user's cache folder.
    Raises ValueError (unknown name, wrong checksum), FileNotFoundError (files are missing),
    ConnectionError (no network) and OSError (no space left).
    """
    entry = catalogue().get(name)
    if entry is None:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(catalogue())}, "
                         "or give a folder of videos")
    root = root or os.environ.get("VLDM_DATA")
    if not root:
        return _download(entry, cache)
    root = Path(root)
    remedy = (f"put the files of {entry.name!r} there (urls: data/catalogue.json), "
              "or unset VLDM_DATA to download them")
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {root} does not exist: correct VLDM_DATA, "
                                f"or {remedy}")
    missing = [file.path for file in entry.files if not (root / file.path).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} lacks {len(missing)} of {len(entry.files)} files "
                                f"({missing[0]}): {remedy}")
    for file in entry.files:
        if not _matches(root / file.path, file.sha256):
            raise ValueError(f"{root / file.path} differs from the catalogue's (sha256): "
                             f"replace it from {file.url}")
    return root / entry.name


def _download(entry: Dataset, cache: str | Path | None) -> Path:
    """Download the files that the cache lacks; each is checked before it counts as there.

    A download that stops is continued by the next call: files that are whole are kept.
    """
    pooch = need("pooch", "downloading")
    import requests
    from tqdm.auto import tqdm

    pooch.get_logger().setLevel("WARNING")
    cache = Path(cache or pooch.os_cache("vldm_mini"))
    missing = [file for file in entry.files if not _matches(cache / file.path, file.sha256)]
    remedy = ("run again (what is there is kept), or copy the files by hand "
              "and set VLDM_DATA to their folder")
    for file in tqdm(missing, desc=entry.name, unit="file", disable=not missing):
        path = cache / file.path
        try:
            pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)
        except requests.RequestException as error:
            reason = "no connection"
            if error.response is not None:
                reason = f"the server answers {error.response.status_code}"
            raise ConnectionError(f"cannot download {file.url} ({reason}): "
                                  f"check the network and {remedy}") from error
        except ValueError as error:
            raise ValueError(f"{file.url} gave other bytes than expected (sha256), "
                             f"nothing is kept: {remedy}") from error
        except OSError as error:
            raise OSError(f"cannot save {path} ({error.strerror or error}): "
                          f"free some space and {remedy}") from error
    return cache / entry.name


def _matches(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    status = path.stat()
    return file_sha256(path, status.st_size, status.st_mtime_ns) == sha256


@lru_cache(maxsize=1024)
def file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file; size and mtime_ns are keys of the cache: each file is read once."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def need(module: str, purpose: str) -> ModuleType:
    """Import an optional library. Raises ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{purpose} needs {module}: pip install "vldm_mini[video]"') from error
