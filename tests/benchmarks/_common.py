"""What several benchmarks share."""
from pathlib import Path

from torch import Tensor

from vldm_mini import weights
from vldm_mini.evaluation.driving_classifiers import ScenePrediction
from vldm_mini.evaluation.frechet import frechet_distance


def number(value: float | Tensor, digits: int) -> float:
    """A float rounded for the file of results."""
    return round(float(value), digits)


def feature_distance(a: ScenePrediction, b: ScenePrediction, kind: str) -> float:
    """Fréchet distance of the scene classifier's features; kind: "video" or "frame"."""
    features = (getattr(one, f"{kind}_features").flatten(0, -2) for one in (a, b))
    return frechet_distance(*features)


def shipped_folder(folder: Path | None, name: str) -> Path:
    """`folder`, or that of the shipped weights."""
    return folder or weights.shipped(name)
