"""For temporal layers of your own: `check` says whether a layer does what `insert` expects."""
from .checks import reach
from .conformance import check
from .report import Finding, Report

__all__ = ["Finding", "Report", "check", "reach"]
