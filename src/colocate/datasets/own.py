"""Data sets of one's own (folders, COCO, GeoJSON): what items.csv says of their images, and splits by case."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.tables import as_text, check_columns, column, read_table
from colocate.base.text import composed
from colocate.datasets.writer import Converted, Draft, Facts
from colocate.slides.settings import check_mpp

COLUMNS = ("path", "source", "mpp", "split")


@final
class Known(NamedTuple):
    """What is said of one image; see `Draft`."""

    source: str = ""
    mpp: float = math.nan
    split: str = ""


@final
class Own(NamedTuple):
    """An image, the file of its labels (a mask, or outlines), and what is known of it."""

    image: Path
    labels: Path
    known: Known


def read_items(
    table: Path, names: Collection[str], mpp: float | None, others: Collection[str] = ()
) -> dict[str, Known]:
    """What a table items.csv, if there is one, says of images, by their names (of files, without ending).

    Its columns: path (with or without ending), source, mpp, split. mpp: of images of which it says none. others: what
    may have a line, and need not.
    Raises UserError if it has other columns, does not fit the images, or holds what is no mpp or no split.
    """
    unsaid = math.nan if mpp is None else mpp
    if not table.exists():
        return dict.fromkeys(names, Known(mpp=unsaid))
    read = read_table(table)
    check_columns(read, COLUMNS, table)
    if "path" not in read.column_names or not set(read.column_names) <= set(COLUMNS):
        columns = ", ".join(read.column_names)
        raise UserError(f"{table} has the columns {columns}: it may have {', '.join(COLUMNS)}, path always")
    mpps = column(read, "mpp", pa.float64(), table).to_pylist() if "mpp" in read.column_names else [None] * len(read)
    plain = {name.strip(): name for name in (*others, *names)}  # blanks around a value get lost in tables
    known: dict[str, Known] = {}
    for line, (row, said) in enumerate(zip(as_text(read), mpps, strict=True), start=2):
        word = composed(Path(row["path"]).name)
        name = plain.get(word) or plain.get(Path(word).stem.strip())
        if name is None or name in known:
            reason = "is a second line of" if name in known else "is not among the images:"
            raise UserError(f"{table}, line {line} {reason} {row['path']}: mend or remove the line")
        if said is not None:
            check_mpp(said, f"{table}, line {line}")
        part = part_named(row.get("split", ""), f"{table}, line {line}")
        known[name] = Known(composed(row.get("source", "")), unsaid if said is None else said, part)
    if missing := [name for name in names if name not in known]:
        raise UserError(f"{table} has no line for {missing[0]}: add it, or remove the table")
    return {name: known[name] for name in (*names, *others) if name in known}


def part_named(word: str, where: str) -> str:
    """The part of a split that a word means: train, or one whose name begins with test or val; empty for no part.

    Raises UserError for another word, with `where` it stands.

    >>> part_named(" Train", "a.csv"), part_named("TestA", "a.csv"), part_named("", "a.csv")
    ('train', 'testA', '')
    """
    word = word.strip()
    small = word.casefold()
    if small in ("", "train"):
        return small
    for part in ("test", "val"):
        if small.startswith(part):
            return part + word[len(part) :].lower() if word.isupper() else part + word[len(part) :]
    raise UserError(f"{where} has the split {word!r}: write train, a name that begins with test or val, or nothing")


def own_drafts(
    facts: Facts,
    images: Mapping[str, Own],
    mask: Callable[[Own], tuple[Int32[Tensor, "h w"], dict[int, int] | None]],
    test_share: float | None,
    where: Path,
    scheme: str = "given",
) -> Converted:
    """Prepare images by their names with one way of splitting them; `mask` makes an image's mask and the class of each
    object in that, one image at a time.

    The split is the given one (`scheme`), else `test_share` (0.2) of the images are test, chosen by the hash of their
    case ("cases") or, where none is known, of their name ("images"). where: what would give a split, for messages.

    Raises UserError if a split is given and a share as well, or `split_by_case` cannot split.
    """
    known = {name: own.known for name, own in images.items()}
    if any(image.split for image in known.values()):
        if test_share is not None:
            raise UserError(f"{where} gives a split: leave out --test-share, or remove the split there")
        parts = [image.split for image in known.values()]
    else:
        scheme = "cases" if any(image.source for image in known.values()) else "images"
        cases = [image.source or name for name, image in known.items()]
        parts = split_by_case(cases, 0.2 if test_share is None else test_share)
    return replace(facts, notes=(*caution(facts.name, known.values()), *facts.notes)), (
        Draft(name, own.image, ids, own.known.source, own.known.mpp, {scheme: part}, object_classes)
        for (name, own), part in zip(images.items(), parts, strict=True)
        for ids, object_classes in [mask(own)]
    )


def whole_text(text: str, where: str) -> str:
    """`composed` of a text. Raises UserError if it has half a character, as JSON may (`\\ud800`) and files may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} has half a character ({text!a}): mend it, or export it again") from None
    return composed(text)


def caution(name: str, known: Collection[Known], what: str = "images") -> tuple[str, ...]:
    """What is to be said of a data set of this name where the case of some is not known; `what` they are, in words."""
    unknown = sum(not one.source for one in known)
    which = "no cases" if unknown == len(known) else f"no case for {unknown:,} of its {len(known):,} {what}"
    return (f"{name} names {which}: a patient may be on both sides.",) if unknown else ()


def split_by_case(cases: Sequence[str], share: float) -> list[str]:
    """What each image is for, train or test: all images of a case the same, decided by the cases' hashes alone.

    cases: of each image, its own name where unknown. The cases with the lowest hashes are test, as many as come
    nearest to `share` of the images, but at least one on each side.
    Raises UserError if `share` is not in (0, 1), or there is only one case.

    >>> split_by_case(["a", "a", "b", "c", "d"], 0.4)
    ['train', 'train', 'train', 'test', 'test']
    """
    if not 0 < share < 1:
        raise UserError(f"--test-share {share:g} leaves a side without images: give a number between 0 and 1")
    distinct = sorted(set(cases), key=lambda case: sha256(case.encode()).digest())
    if len(distinct) < 2:
        raise UserError("All images are of one case, which cannot be on both sides: give each its split")
    images = Counter(cases)
    held = np.cumsum([images[case] for case in distinct])
    count = 1 + int(np.abs(held[:-1] - share * len(cases)).argmin())
    test = set(distinct[:count])
    return ["test" if case in test else "train" for case in cases]
