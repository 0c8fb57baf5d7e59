"""Two plots that several chapters use: alpha per temporal layer, and the losses of a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .frames import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _values(alphas: Any) -> dict[str, np.ndarray]:
    """TemporalLayers, a dict, or a list of numbers or tensors -> {name: 1-D array}."""
    if hasattr(alphas, "alphas"):
        alphas = alphas.alphas()
    named = alphas.items() if hasattr(alphas, "items") else enumerate(alphas)
    values = {}
    for name, alpha in named:
        array = torch.as_tensor(alpha).detach().float().cpu().numpy()
        values[str(name)] = np.atleast_1d(array).ravel()
    return values


def alphas(layers: Any, before: Any = None, ax: "Axes | None" = None) -> "Axes":
    """Plot alpha per temporal layer, input end on top; 1: spatial layer alone, 0: temporal alone.

    layers: what `temporal.insert` returned, or {name: alpha} (a number, or one per channel, which
    are shown as mean and range). before: the same at the start of training, as open circles.
    """
    import matplotlib.pyplot as plt

    now = _values(layers)
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 0.6 + 0.22 * len(now)), layout="constrained")
    y = np.arange(len(now))
    lowest, highest = [a.min() for a in now.values()], [a.max() for a in now.values()]
    ax.hlines(y, lowest, highest, color=COLOURS[0], lw=2)
    ax.plot([a.mean() for a in now.values()], y, "o", color=COLOURS[0], label="now")
    if before is not None:
        start = [a.mean() for a in _values(before).values()]
        ax.plot(start, y, "o", mfc="none", color=COLOURS[1], label="before")
        ax.legend(loc="best")
    ax.set(yticks=y, yticklabels=list(now), xlim=(-0.02, 1.02), xlabel="alpha")
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    return ax


def losses(
    record: Any, levels: bool = False, ax: "Axes | None" = None, smooth: int = 1, label: str = ""
) -> "Axes":
    """Plot a run's losses over its steps, or with `levels` the loss of each noise level.

    record: a `training.Record`, or its rows
    [{"step": 10, "losses": {"image": 0.3}, "levels": [0.9, None, ...]}, ...];
    {"step": 10, "loss": 0.3} does as well. smooth: window of a running mean, in rows.
    Noise levels run from low tau (dark) to high tau (light).
    Raises ValueError where the record holds no loss of this kind.
    """
    import matplotlib.pyplot as plt

    curves = _curves(getattr(record, "rows", record), levels)
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    for i, (name, points) in enumerate(curves.items()):
        step, y = np.array(points, dtype=float).T
        window = min(max(1, smooth), len(y))
        mean = np.convolve(y, np.ones(window) / window, mode="valid")
        if levels:
            colour = plt.get_cmap("viridis")(i / max(1, len(curves)))
        else:
            colour = COLOURS[i % len(COLOURS)]
        ax.plot(step[window - 1 :], mean, color=colour, label=f"{label} {name}".strip())
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.grid(alpha=0.3)
    if len(curves) > 5:
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        ax.legend(fontsize=7, loc="best")
    return ax


def _named_losses(row: Mapping, levels: bool) -> dict[str, float | None]:
    """One row of a record -> {name of the curve: loss}."""
    if levels:
        values = row.get("levels", ())
        edges = [1000 * j // max(1, len(values)) for j in range(len(values) + 1)]  # of tau
        return {f"tau {edges[j]} to {edges[j + 1]}": y for j, y in enumerate(values)}
    if row.get("losses"):
        return row["losses"]
    return {"loss": row["loss"]} if "loss" in row else {}


def _curves(rows: Sequence[Mapping], levels: bool) -> dict[str, list[tuple[int, float]]]:
    """Rows of a record -> {name of the curve: [(step, loss), ...]}."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for i, row in enumerate(rows):
        for name, y in _named_losses(row, levels).items():
            if y is not None:
                curves.setdefault(name, []).append((row.get("step", i), y))
    if not curves:
        raise ValueError("the record holds no losses of this kind yet: train for a few steps first")
    return curves
