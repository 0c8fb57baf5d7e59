"""Training: the loop and its parts. `recipes` and `upsampler` say what each stage trains, on what, with which loss."""
from ..diffusion import rng
from .loop import (
    EMA,
    LEVELS,
    Muon,
    Objective,
    Record,
    Settings,
    learning_rate,
    levels,
    optimizers,
    orthogonal,
    provenance,
    train,
)

__all__ = ["EMA", "LEVELS", "Muon", "Objective", "Record", "Settings", "learning_rate", "levels", "optimizers",
           "orthogonal", "provenance", "rng", "train"]
