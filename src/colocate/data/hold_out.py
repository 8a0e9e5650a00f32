"""Tiles left out of training, by what a column of their table says of them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from colocate.data.rows import numbered
from colocate.errors import UserError

SHOWN = 8  # of a column's values, where one is not among them

HeldOut = dict[str, list[str]]
"""Columns, and of each the values whose tiles are held out."""


def held_out(words: Sequence[str]) -> HeldOut:
    """What `--hold-out COLUMN=VALUE[,VALUE...] ...` says. Raises UserError for a word that says nothing.

    >>> held_out(["split=test,val", "patient=P1"])
    {'split': ['test', 'val'], 'patient': ['P1']}
    """
    asked: HeldOut = {}
    for word in words:
        column, _, values = word.partition("=")
        named = [value.strip() for value in values.split(",")]
        if not column.strip() or not all(named):
            raise UserError(f"--hold-out {word!r}: give COLUMN=VALUE[,VALUE...], such as split=test")
        asked.setdefault(column.strip(), []).extend(named)
    return asked


def check_columns(held_out: HeldOut, known: Sequence[str], data: Path) -> None:
    """Raises UserError for a column that is not among those known of `data`."""
    for name, values in held_out.items():
        if name not in known:
            raise UserError(f"--hold-out {name}={values[0]}: {data} has no column {name}: {_meant(name, known)}")


def left_in(table: pa.Table, held_out: HeldOut, data: Path) -> Bool[np.ndarray, " n"]:
    """For each row of a table whether it is not held out.

    Raises UserError for a column that is not there, a value that occurs nowhere, or if no row is left.
    """
    check_columns(held_out, table.column_names, data)
    kept = np.ones(len(table), bool)
    for name, values in held_out.items():
        try:
            numbers, words = numbered(table[name])
        except pa.ArrowException:
            raise UserError(f"--hold-out {name}={values[0]}: that column of {data} holds no words") from None
        if unknown := [value for value in values if value not in words]:
            meant = _meant(unknown[0], [word for word in words if word])
            raise UserError(f"--hold-out {name}={unknown[0]}: no tile of {data} has this {name}: {meant}")
        kept &= ~np.isin(words, values)[numbers]
    if not kept.any():
        raise UserError(f"--hold-out leaves no tile of {data} to train on: hold out less")
    return kept


def _meant(word: str, known: Sequence[str]) -> str:
    """What may have been meant, or what there is.

    >>> _meant("tset", ["train", "test"]), _meant("P9", ["no", "yes"])
    ('did you mean test?', 'there are no, yes')
    """
    if close := get_close_matches(word, known, 1):
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(known[:SHOWN])}" + (", ..." if len(known) > SHOWN else "")
