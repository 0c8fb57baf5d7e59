"""For temporal layers of your own: `check` says whether a layer does what `insert` expects."""
from .conformance import check, reach
from .report import Finding, Report

__all__ = ["Finding", "Report", "check", "reach"]
