"""Classes of temporal layers with their hyperparameters: how they are given, named, saved, hashed.

Nothing of the paper: `insertion` stores with the weights of temporal layers how to build the layers
again, and the source of a reader's own ones. Chapter 15 writes and saves one.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class LayerClass:
    """A class of layers and the keyword arguments that it is built with.

    `source` is the text of the file that defines it, read when this object is made: later changes
    of the file are not in the running program.
    """

    make: Callable[..., Any]                  # a class or a named function
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, given: Any) -> LayerClass:
        """given: a class, functools.partial(class, key=value), dict(layer=class, key=value), or an
        instance of a dataclass whose __call__ takes the insertion point.

        Raises TypeError for anything else, ValueError for hyperparameters that JSON cannot keep.
        """
        make, hyperparameters = given, {}
        if isinstance(given, functools.partial):
            if given.args:
                raise ValueError(f"name the arguments in functools.partial({_name(given.func)}, "
                                 "...): the first positional one is the insertion point")
            make, hyperparameters = given.func, dict(given.keywords)
        elif isinstance(given, dict):
            if "layer" not in given:
                raise ValueError("a dict names its class under the key 'layer': "
                                 f"dict(layer=MyLayer, ...); got the keys {sorted(given)}")
            hyperparameters = {key: value for key, value in given.items() if key != "layer"}
            make = given["layer"]
        elif dataclasses.is_dataclass(given) and not isinstance(given, type) and callable(given):
            make, hyperparameters = type(given), dataclasses.asdict(given)
        _check(make, hyperparameters)
        return cls(make, hyperparameters, source_text(make))

    @property
    def name(self) -> str:
        """"ShiftMix"."""
        return self.make.__name__

    @property
    def path(self) -> str:
        """Where it is defined: "mylayers.ShiftMix", "__main__.ShiftMix"."""
        return f"{self.make.__module__}.{self.make.__qualname__}"

    @property
    def built_in(self) -> bool:
        """Whether it is one of this package."""
        return self.path.startswith(f"{PACKAGE}.")

    def __call__(self, *arguments: Any) -> Any:
        """Build one: arguments, then the hyperparameters."""
        if dataclasses.is_dataclass(self.make):
            return self.make(**self.hyperparameters)(*arguments)
        return self.make(*arguments, **self.hyperparameters)

    def sources(self) -> dict[str, str]:
        """{name: text of the file that defines it}, of the class and of its bases, without those of
        torch and of this package."""
        found = {}
        for base in inspect.getmro(self.make) if isinstance(self.make, type) else (self.make,):
            if base.__module__.partition(".")[0] not in ("torch", "builtins", "abc", PACKAGE):
                found[base.__name__] = self.source if base is self.make else source_text(base)
        return found

    def fingerprint(self) -> list:
        """What the layer computes, as JSON: name, hyperparameters, code without comments."""
        bases = inspect.getmro(self.make) if isinstance(self.make, type) else (self.make,)
        ours = [base for base in bases if base.__module__.partition(".")[0] not in
                ("torch", "builtins", "abc")]
        texts = [code_of(base.__name__, self.source if base is self.make else source_text(base))
                 for base in ours]
        return [self.name, self.hyperparameters, texts]


def _check(make: Any, hyperparameters: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for what cannot be built again from a file."""
    if isinstance(make, nn.Module):
        raise TypeError(f"give the class {type(make).__name__}, not an instance of it: one layer "
                        "is built for each insertion point")
    if not callable(make) or not hasattr(make, "__qualname__"):
        raise TypeError("a layer is given as a class, functools.partial(class, key=value) or "
                        f"dict(layer=class, key=value), got {make!r}")
    if make.__name__ == "<lambda>":
        raise ValueError("a lambda has no name to be saved under; write functools.partial(MyLayer, "
                         "key=value), or a function with a name")
    for key, value in hyperparameters.items():
        if not is_json(value):
            raise ValueError(f"the hyperparameter {key}={value!r} of {make.__name__} cannot be "
                             "saved in config.json: use numbers, text, True, False, None, and "
                             "lists and dicts of these")


def is_json(value: Any) -> bool:
    """Whether JSON gives a value back as it was: numbers, text, bool, None, lists and dicts."""
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


def built_in(path: str) -> Any:
    """The class of this package at an import path, or None for a path of another package."""
    module, _, name = path.rpartition(".")
    if not module.startswith(f"{PACKAGE}."):
        return None
    return getattr(importlib.import_module(module), name, None)


def saved_class(kind: str, given: Any, settings: dict, folder: str | Path) -> LayerClass | None:
    """The class that a folder was saved with: the one given, or one of this package."""
    path = settings[kind]
    name = path.rpartition(".")[2] if path else None
    own = LayerClass.of(given) if given is not None else None
    if own is None and path is not None:
        found = built_in(path)
        if found is None:
            raise ValueError(
                f"{folder} was saved with {kind}={name}, which is no class of this package: give "
                f"it, from_pretrained(..., {kind}={name}); its source lies in "
                f"{Path(folder) / name}.py.txt")
        own = LayerClass.of(found)
    if own is None:
        return None
    if own.name != name:
        raise ValueError(f"{folder} was saved with {kind}={name}, not with {own.name}")
    saved = settings["hyperparameters"].get(kind, {})
    if own.hyperparameters and own.hyperparameters != saved:
        raise ValueError(f"{folder} was saved with {name}({saved}), not {own.hyperparameters}: "
                         "give the class alone")
    return dataclasses.replace(own, hyperparameters=saved)


def source_text(make: Any) -> str:
    """The text of the file, or of the notebook cell, that defines a class or a function.

    Empty where Python does not keep it (typed into a plain interpreter).
    """
    # through its methods: a class of a notebook has no module with a file
    functions = [make] if inspect.isfunction(make) else vars(make).values()
    for function in filter(inspect.isfunction, functions):
        text = _file_text(function.__code__.co_filename)
        if text:
            return text
    try:
        return _file_text(inspect.getsourcefile(make) or "")
    except TypeError:
        return ""


def _file_text(file: str) -> str:
    """A file's text; of a notebook cell, which is no file, what Python keeps of it."""
    if Path(file).is_file():
        return Path(file).read_text(encoding="utf-8")
    return "".join(linecache.getlines(file))


def code_of(name: str, text: str) -> str:
    """A class or function of a source text, and what it uses of that text, without comments.

    Other layers in the same file, and changes of layout and docstrings, leave it as it is. What is
    imported from other files is not followed. The whole text where it is not plain Python.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    defined = {}
    for node in tree.body:
        for target in _defines(node):
            defined.setdefault(target, []).append(node)
    wanted, used = [name], set()
    while wanted:
        used_name = wanted.pop()
        if used_name not in used:
            used.add(used_name)
            for node in defined.get(used_name, ()):
                wanted += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    nodes = [node for node in tree.body if used.intersection(_defines(node))]
    return "\n".join(ast.unparse(_without_docstrings(node)) for node in nodes) or text


def _defines(node: ast.stmt) -> list[str]:
    """The names that a statement on the top level of a file defines."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    return [n.id for n in ast.walk(node)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for part in ast.walk(node):
        has_body = isinstance(part, (ast.ClassDef, ast.FunctionDef))
        if has_body and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return node


def fingerprint(classes: list[LayerClass], settings: dict[str, Any]) -> str:
    """sha256 of the code of classes, their hyperparameters, and the settings around them."""
    facts = [[layer.fingerprint() for layer in classes], settings]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _name(make: Any) -> str:
    return getattr(make, "__name__", repr(make))
