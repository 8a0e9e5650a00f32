"""Where a run's time goes on the user's own machine and data: `colocate bench`."""

from .measure import bench
from .report import Report

__all__ = ["Report", "bench"]
