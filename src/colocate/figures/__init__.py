"""Pictures of a run."""

from .report import report

__all__ = ["report"]
