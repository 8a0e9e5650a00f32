"""Pictures of a run, and of several beside each other."""

from .compare import compare
from .report import report

__all__ = ["compare", "report"]
