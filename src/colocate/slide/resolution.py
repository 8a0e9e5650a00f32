"""Micrometres per pixel, the only word for resolution here."""

from __future__ import annotations

from ..errors import UserError


def check_mpp(mpp: float, where: str) -> None:
    """Raises UserError unless `mpp` (micrometres per pixel) lies above 0 and below 100.

    >>> check_mpp(-1, "tiles.csv")
    Traceback (most recent call last):
    colocate.errors.UserError: tiles.csv: -1 micrometres per pixel is no resolution: give a number above 0 and below 100
    """
    if not 0 < mpp < 100:
        message = f"{mpp:g} micrometres per pixel is no resolution: give a number above 0 and below 100"
        raise UserError(f"{where}: {message}")
