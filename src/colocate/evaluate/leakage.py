"""Has a backbone seen what it is judged by? Test images and their cases, sought among training images and tiles.

Sought are equal pixels, the same picture in another size, compression or flip (see `hashes`), the images' names in the
tiles' paths, and their cases in the tiles' sources and paths. What cannot be found so is said under `unchecked`: a crop
of a test image under another name, of no stated case. Tiles that cannot be read, beyond a few, count as a finding.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import UInt64
from torch import Tensor

from colocate.base.errors import TileError, UserError
from colocate.base.text import counted
from colocate.data.index import Index
from colocate.datasets.labelled import Labelled
from colocate.evaluate.hashes import ALIKE, Hashes, alike, hashes, near_pairs
from colocate.pretrain.run import resume_command


def is_telling(word: str) -> bool:
    """Whether a word is unlikely to stand for something else.

    >>> [is_telling(word) for word in ("testA_1", "2001837", "001", "image", "TCGA-A2-A0T2")]
    [True, True, False, False, True]
    """
    return len(word) >= 6 and any(letter.isdigit() for letter in word)


def own_word(case: str) -> str:
    """The case without its data set's name."""
    return case.partition(":")[2] or case


def pattern(words: str) -> re.Pattern[str]:
    """Finds the words in small letters, with whatever signs between them, but not within a longer number or word.

    >>> [bool(pattern("glas:9").search(text)) for text in ("glas-9", "glas_9/a.png", "glas:91", "bioglas:9")]
    [True, True, False, False]
    >>> [bool(pattern("2001837").search(text)) for text in ("gt2001837-1-400.jpg", "12001837.jpg")]
    [True, False]
    """
    first, *rest = (re.escape(part) for part in re.findall(r"[^\W_]+", words.lower()) or [words])
    letter, digit = r"[^\W\d_]", "[0-9]"
    before, after = (digit if end.isdigit() else letter for end in (first[0], (rest or [first])[-1][-1]))
    # The literal comes first, and only then what may not stand before it: re then searches ten times faster.
    return re.compile(r"[\W_]+".join([f"{first}(?<!{before}{first})", *rest]) + f"(?!{after})")


def seek(patterns: dict[str, re.Pattern[str]], texts: Sequence[str]) -> dict[str, int]:
    """For each pattern that is found in some of the texts the number of the first."""
    lines = [text.lower() for text in texts]
    whole = "\n".join(lines)
    ends = np.cumsum([len(line) + 1 for line in lines]).tolist()
    hits = {name: pattern.search(whole) for name, pattern in patterns.items()}
    return {name: bisect_right(ends, hit.start()) for name, hit in hits.items() if hit}


SHOWN = 3  # examples in a sentence
UNREAD = 0.01  # largest share of tiles that may be unreadable: what is in them nobody knows
FORCE = "--allow-leakage"


@final
@dataclass(frozen=True)
class Findings:
    """What was checked, what could not be, and what was found; in sentences."""

    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    found: tuple[str, ...]
    shared_sources: tuple[str, ...]
    """Cases that the split itself has in its training and its test part; they are stated, not refused."""

    def facts(self, forced: bool) -> dict[str, Any]:
        """What a result says of it."""
        told = {name: list(getattr(self, name)) for name in ("checked", "unchecked", "found")}
        return told | {"forced": forced and bool(self.found)}


def tiles_of(backbone: Path) -> Index | None:
    """The tiles that a backbone was pretrained on; None where nothing beside it tells.

    `backbone` is a run's folder, the folder `best` in it, or a file in either. Raises UserError if the run's index of
    tiles is damaged.
    """
    folder = backbone if backbone.is_dir() else backbone.parent
    path = (folder.parent if folder.name == "best" else folder) / "tiles.arrow"
    return Index.open(path) if path.is_file() else None


def check(data: Labelled, scheme: str, index: Index | None, origin: str) -> Findings:
    """Seek the test images of a split, and their cases, in its training part and in the tiles of pretraining.

    The hashes of all images are kept in hashes.parquet beside the index and in the data set's folder.

    Args:
        data: The data set.
        scheme: The split.
        index: The tiles of pretraining, None where there are none or they are unknown.
        origin: The backbone: random, imagenet, or its path.

    Raises:
        UserError: no such split, or an image of the data set cannot be read.
    """
    notes = _Notes()
    test, train = data.test(scheme), data.train(scheme)
    own = _own_hashes(data)
    shared = sorted(data.shared_sources(scheme))
    _compare_images(notes, data, test, own, _training(data, train, own))
    notes.checked.append(f"cases of the split: {_listed(shared) or 'none'} on both sides")
    if not all(data.items[number].source for number in [*test, *train]):
        notes.unchecked.append("the cases of some images of the data set are not known")
    if index is None and origin == "random":
        notes.checked.append("a random backbone has seen no images")
    elif index is None:
        known = "photographs, of which there is no list" if origin == "imagenet" else "data that are not known"
        notes.unchecked.append(f"{origin}: the weights were trained on {known}")
    else:
        tiles = hashes(index.read, len(index), index.path.with_name("hashes.parquet"), index.fingerprint, False)
        others = _Others("pretraining tile", tiles.exact, tiles.near[:, 0], index.read, index.name)
        _compare_images(notes, data, test, own, others)
        _seek_names(notes, data, test, index)
        _seek_cases(notes, data, test, set(shared), index)
        _note_start(notes, index)
        _note_unread(notes, index, tiles.unreadable)
        notes.unchecked.append("crops of test images are found by name and case only, never by their pixels")
    return Findings(tuple(notes.checked), tuple(notes.unchecked), tuple(notes.found), tuple(shared))


def refuse(findings: Findings, forced: bool) -> None:
    """Raises UserError, with what was found, unless it is `forced`."""
    if findings.found and not forced:
        first, *others = findings.found
        more = f" (and {counted(len(others), 'more finding')})" if others else ""
        raise UserError(
            f"the test images are no honest test: {first}{more}; "
            f"leave them out of what is trained on, or go on knowingly with {FORCE}"
        )


@dataclass
class _Notes:
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


@final
class _Others(NamedTuple):
    """Images that test images are compared with, by their places 0, 1, ..."""

    noun: str
    exact: list[bytes]
    near: UInt64[np.ndarray, "n"]
    read: Callable[[int], Tensor]
    name: Callable[[int], str]


def _training(data: Labelled, train: list[int], own: Hashes) -> _Others:
    return _Others(
        "training image",
        [own.exact[number] for number in train],
        own.near[train, 0],
        lambda place: data.image(train[place]),
        lambda place: data.items[train[place]].path,
    )


def _own_hashes(data: Labelled) -> Hashes:
    own = hashes(data.image, len(data), data.folder / "hashes.parquet", data.fingerprint, True)
    for reason in own.unreadable.values():
        raise UserError(reason)
    return own


def _compare_images(notes: _Notes, data: Labelled, test: list[int], own: Hashes, others: _Others) -> None:
    """Equal pixels, and pictures that look the same."""
    known = [place for place, digest in enumerate(others.exact) if digest]
    places = {others.exact[place]: place for place in reversed(known)}
    equal = {number: places[own.exact[number]] for number in test if own.exact[number] in places}
    looks: dict[int, int] = {}
    for row, column in near_pairs(own.near[test], others.near[known]):
        number, place = test[row], known[column]
        if number not in equal and number not in looks and _is_alike(data, number, others, place):
            looks[number] = place
    for pairs, says in ((equal, "pixel for pixel"), (looks, "but for size, compression, colour or flips")):
        if pairs:
            named = (f"{data.items[number].path} is {others.name(place)}" for number, place in pairs.items())
            whole = counted(len(pairs), "test image")
            verb = "is a" if len(pairs) == 1 else "are"
            kind = others.noun if len(pairs) == 1 else f"{others.noun}s"
            notes.found.append(f"{whole} {verb} {kind} {says}: {_examples(list(named))}")
    notes.checked.append(
        f"{counted(len(test), 'test image')} against {counted(len(known), others.noun)}: "
        "pixels, and how they look (64-bit perceptual hash under the eight symmetries)"
    )


def _is_alike(data: Labelled, number: int, others: _Others, place: int) -> bool:
    try:
        return alike(data.image(number), others.read(place)) >= ALIKE
    except TileError:  # hashed once, gone since
        return True


def _seek_names(notes: _Notes, data: Labelled, test: list[int], index: Index) -> None:
    """Names of test images in the tiles' paths."""
    names = {data.items[number].name: number for number in test}
    telling = [name for name in names if is_telling(name) and not name.isdecimal()]
    if rest := [name for name in names if name not in telling]:
        few = _examples([f'"{name}"' for name in rest])
        notes.unchecked.append(f"names that are too short or plain to be sought in the tiles' paths: {few}")
    paths, tiles = _paths(index)
    found = seek({name: pattern(name) for name in telling}, paths)
    if found:
        named = [f"{data.items[names[name]].path} in {index.name(tiles[place])}" for name, place in found.items()]
        notes.found.append(f"{counted(len(found), 'test image')} by name in tiles' paths: {_examples(named)}")
    if telling:
        notes.checked.append(f"names of {counted(len(telling), 'test image')} in the paths of tiles")


def _seek_cases(notes: _Notes, data: Labelled, test: list[int], shared: set[str], index: Index) -> None:
    """Cases of test images as the tiles' sources, and as words of sources and paths where they are telling words."""
    cases = sorted({data.items[number].source for number in test} - {""})
    every = {item.source for item in data.items} - {""}
    if not cases:
        return
    sources = index.sources
    first = dict(zip(*(part.tolist() for part in np.unique(index.source_numbers, return_index=True)), strict=True))
    tiles = {case: first[place] for case, place in seek({c: pattern(c) for c in every}, sources).items()}
    words = {case: pattern(own_word(case)) for case in every if is_telling(own_word(case))}
    tiles |= {case: first[place] for case, place in seek(words, sources).items() if case not in tiles}
    paths, numbers = _paths(index)
    tiles |= {case: numbers[place] for case, place in seek(words, paths).items() if case not in tiles}
    found = [case for case in cases if case in tiles and case not in shared]
    if found:
        named = [f"{case} ({index.name(tiles[case])})" for case in found]
        notes.found.append(f"{counted(len(found), 'test case')} among the tiles' cases: {_examples(named)}")
    stated = [case for case in cases if case in tiles and case in shared]
    aside = f"; {_listed(stated)} are among them, but the split itself has them on both sides" if stated else ""
    notes.checked.append(
        f"{counted(len(cases), 'test case')} against the {counted(len(sources), 'source')} of the tiles{aside}"
    )
    if not tiles:
        few = _examples(sources)
        notes.unchecked.append(
            f"no tile's source ({few}) is written as a case of {data.name} (such as {cases[0]}): "
            "if tiles are of its cases, nothing tells"
        )


def _note_start(notes: _Notes, index: Index) -> None:
    """The weights that a run started from have seen images too."""
    try:
        start = str(json.loads(index.path.with_name("recipe.json").read_text())["encoder"]["init"])
    except (OSError, ValueError, KeyError, TypeError):
        start = "weights that are not known (no readable recipe.json)"
    if start != "random":
        notes.unchecked.append(f"what the run started from ({start}) was pretrained on data that are not checked")


def _note_unread(notes: _Notes, index: Index, unreadable: dict[int, str]) -> None:
    """Tiles whose pixels were not compared."""
    if not unreadable:
        return
    first = next(iter(unreadable.values()))
    line = f"{len(unreadable):,} of {counted(len(index), 'pretraining tile')} cannot be read (the first: {first})"
    if len(unreadable) <= UNREAD * len(index):
        notes.unchecked.append(line)
    else:
        command = resume_command(index.path.parent)
        notes.found.append(f"{line} and may be test images; if they were moved, say where to: {command} --data PLACE")


def _paths(index: Index) -> tuple[list[str], Sequence[int]]:
    """Tiles' paths below their root, shards included, of slides each once; and for each a tile that has it."""
    if index.kind == "slides":
        slides = index.table["path"].combine_chunks()
        numbers, tiles = np.unique(slides.indices.to_numpy(), return_index=True)
        return slides.dictionary.take(numbers).to_pylist(), tiles.tolist()
    shards = index.table["shard"].to_pylist() if index.kind == "tar" else [None] * len(index)
    paths = index.table["path"].to_pylist()
    return [f"{shard or ''}/{path}" for shard, path in zip(shards, paths, strict=True)], range(len(index))


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _examples(words: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f", and {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    return _listed(words[:SHOWN]) + more
