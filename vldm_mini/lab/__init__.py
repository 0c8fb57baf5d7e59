"""The bench for temporal layers of your own: `check` says whether a layer does what `insert` expects."""
from .conformance import check, reach

__all__ = ["check", "reach"]
