"""Whose an image of The Cancer Genome Atlas is: its name begins with a barcode, TCGA-SITE-PARTICIPANT-..."""

from __future__ import annotations

import re

from colocate.errors import UserError

BARCODE = re.compile(r"TCGA-([0-9A-Z]{2})-[0-9A-Z]{4}(?![0-9A-Z])")


def patient(name: str) -> str:
    """The first three parts of the barcode: the same words in every data set, so that a shared patient is found.

    Raises:
        UserError: the name does not begin with a barcode.

    >>> patient("TCGA-A7-A13E-01Z-00-DX1")
    'TCGA-A7-A13E'
    """
    return _barcode(name)[0]


def site(name: str) -> str:
    """The second part of the barcode: the institute that the tissue comes from. Raises UserError as `patient` does."""
    return _barcode(name)[1]


def _barcode(name: str) -> re.Match[str]:
    if match := BARCODE.match(name):
        return match
    raise UserError(f"{name} does not begin with a TCGA barcode, which says whose it is: undo its renaming")
