"""Training: one loop for every stage, and what each stage trains, on what, with which loss.

`loop` knows no network. `sizes` is the dial, `data` clips and latents, `losses` the objectives of
section 3, `stages` one short module a stage and `train all`.
"""
from ..diffusion import rng
from .loop import Objective, Settings, Watch, train
from .optimizers import EMA, Muon, learning_rate, make_optimizers, orthogonal
from .randomness import BatchRandom
from .record import LEVELS, Record, provenance

__all__ = ["BatchRandom", "EMA", "LEVELS", "Muon", "Objective", "Record", "Settings", "Watch",
           "learning_rate", "make_optimizers", "orthogonal", "provenance", "rng", "train"]
