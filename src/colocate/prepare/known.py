"""What is known of an image beside its pixels: its case, its resolution, and what it is for."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, final

from colocate.errors import UserError
from colocate.prepare.files import split_by_case

COLUMNS = ("path", "source", "mpp", "split")


@final
class Known(NamedTuple):
    """Of one image; see `Draft`."""

    source: str = ""
    mpp: float = math.nan
    split: str = ""


def read_table(table: Path, images: Mapping[str, Path]) -> dict[str, Known]:
    """What a table items.csv says of images, by their names: columns path (with or without ending), source, mpp, split.

    Raises:
        UserError: it has other columns, does not fit the images, or an mpp is no number.
    """
    rows: dict[str, Known] = {}
    by_name = {path.name: name for name, path in images.items()}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "path" not in columns or not set(columns) <= set(COLUMNS):
            raise UserError(
                f"{table} has the columns {', '.join(columns)}: it may have {', '.join(COLUMNS)}, path always"
            )
        for line, row in enumerate(reader, start=2):
            given = Path(row["path"] or "").name
            name = by_name.get(given, given)
            if name not in images or name in rows:
                reason = "is a second line of" if name in rows else "is not among the images:"
                raise UserError(f"{table}, line {line} {reason} {row['path']}: mend or remove the line")
            try:
                mpp = float(row.get("mpp") or "nan")
            except ValueError:
                raise UserError(f"{table}, line {line}: mpp {row['mpp']!r} is no number: mend or empty it") from None
            rows[name] = Known(row.get("source") or "", mpp, row.get("split") or "")
    if missing := [path for name, path in images.items() if name not in rows]:
        raise UserError(f"{table} has no line for {missing[0].name}: add it, or remove the table")
    return rows


def split(known: Mapping[str, Known], test_share: float | None, where: Path) -> tuple[str, list[str]]:
    """A way of splitting images, and the part of each.

    It is the given one ("given"), else `test_share` (0.2) of the images are test, chosen by the hash of their case
    ("cases") or, where none is known, of their name ("images"). known: by the images' names; where: what gave it.

    Raises:
        UserError: a split is given and a share as well, or `split_by_case` cannot.
    """
    if any(image.split for image in known.values()):
        if test_share is not None:
            raise UserError(f"{where} gives a split: leave out --test-share, or remove the split there")
        return "given", [image.split for image in known.values()]
    scheme = "cases" if any(image.source for image in known.values()) else "images"
    cases = [image.source or name for name, image in known.items()]
    return scheme, split_by_case(cases, 0.2 if test_share is None else test_share)


def caution(known: Mapping[str, Known], name: str) -> tuple[str, ...]:
    """What to say of a data set of that name if no case is known."""
    if any(image.source for image in known.values()):
        return ()
    return (f"{name} names no cases: a patient may be on both sides.",)
