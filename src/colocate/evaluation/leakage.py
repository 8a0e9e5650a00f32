"""Find test images, and their cases, among training images and the tiles of pretraining.

Sought are equal pixels, the same picture in another size, compression or flip (see `hashes`), and tiles whose source is
the case of a test image. What cannot be found so is said under `unchecked`: a crop of a test image of no stated case.
Tiles that cannot be read, beyond a few, count as a finding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from torch import Tensor

from colocate.base.errors import TileError, UserError
from colocate.base.text import composed, counted
from colocate.data.index import Index
from colocate.datasets.labelled import Labelled
from colocate.evaluation.hashes import ALIKE, Hashes, alike, hashes, near_pairs
from colocate.evaluation.results import Findings
from colocate.methods.settings import DistilConfig
from colocate.models.backbones import names_run
from colocate.training.run import resume_command

SHOWN = 3  # examples in a sentence
UNREAD = 0.01  # largest share of tiles that may be unreadable: what is in them nobody knows


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

    The hashes of all images are kept in hashes.parquet beside the index and in the data set's folder. Cases that the
    split itself has on both sides are stated, not found.

    Args:
        data: The data set.
        scheme: The split.
        index: The tiles of pretraining, None where there are none or they are unknown.
        origin: The backbone: random, imagenet, or its path.

    Raises:
        UserError: no such split, or an image of the data set cannot be read.
    """
    findings = Findings()
    test, train = data.test(scheme), data.train(scheme)
    key = repr([item.path_sha256 for item in data.items])  # in their order, which the fingerprint does not tell
    own = hashes(data.image, len(data), data.folder / "hashes.parquet", blake2b(key.encode()).hexdigest(), True)
    for reason in own.unreadable.values():
        raise UserError(reason)
    alike_turned = [number for number in test if (own.near[number] == own.near[number, 0]).all()]
    blank = {number for number in alike_turned if not np.ptp(data.image(number).numpy(), (1, 2)).any()}
    if blank:
        findings.unchecked.append(f"{counted(len(blank), 'test image')} of one colour: any other blank one is equal")
        test = [number for number in test if number not in blank]
    tested = _Images("test image", own, data.image, lambda number: data.items[number].path)
    training = tested._replace(noun="training image")
    _compare_images(findings, tested, test, training, train)
    shared = sorted(data.shared_sources(scheme))
    findings.checked.append(f"cases of the split: {', '.join(shared) or 'none'} on both sides")
    if not all(_is_telling(data.items[number].source) for number in [*test, *train]):
        findings.unchecked.append("the cases of some images of the data set are not known")
    if index is None and origin == "random":
        findings.checked.append("a random backbone has seen no images")
    elif index is None:
        known = "photographs, of which there is no list" if origin == "imagenet" else "data that are not known"
        findings.unchecked.append(f"{origin}: the weights were trained on {known}")
    else:
        for run in _lineage(findings, index):
            seen = hashes(run.read, len(run), run.path.with_name("hashes.parquet"), run.fingerprint, False)
            tiles = _Images("pretraining tile", seen, run.read, run.name)
            _compare_images(findings, tested, test, tiles, range(len(run)))
            _compare_cases(findings, data, test, shared, run)
            _note_unread(findings, run, seen.unreadable)
        findings.unchecked.append("crops of test images are found by their case only, never by their pixels")
    return findings


def refuse(findings: Findings, forced: bool) -> None:
    """Raise UserError, with what was found, unless it is `forced`."""
    if findings.found and not forced:
        first, *others = findings.found
        more = f" (and {counted(len(others), 'more finding')})" if others else ""
        raise UserError(
            f"the test images are not an honest test: {first}{more}; "
            "leave them out of what is trained on, or go on knowingly with --allow-leakage"
        )


@final
class _Images(NamedTuple):
    """Images 0, 1, ... with their hashes."""

    noun: str
    hashes: Hashes
    read: Callable[[int], Tensor]
    name: Callable[[int], str]


def _compare_images(
    findings: Findings, tested: _Images, test: Sequence[int], others: _Images, among: Sequence[int]
) -> None:
    """Find equal pixels, and pictures that look the same, of images `test` among others by their numbers."""
    own, its = tested.hashes, others.hashes
    known = [number for number in among if its.exact[number]]
    places = {its.exact[number]: number for number in reversed(known)}
    equal = {number: places[own.exact[number]] for number in test if own.exact[number] in places}
    looks: dict[int, int] = {}
    for row, column in near_pairs(own.near[test], its.near[known, 0]):
        number, other = test[row], known[column]
        if number not in equal and number not in looks and _is_alike(tested, number, others, other):
            looks[number] = other
    for pairs, says in ((equal, "pixel for pixel"), (looks, "but for size, compression, colour or flips")):
        if pairs:
            named = [f"{tested.name(number)} is {others.name(other)}" for number, other in pairs.items()]
            verb = "is a" if len(pairs) == 1 else "are"
            kind = others.noun if len(pairs) == 1 else f"{others.noun}s"
            findings.found.append(f"{counted(len(pairs), 'test image')} {verb} {kind} {says}: {_examples(named)}")
    findings.checked.append(
        f"{counted(len(test), 'test image')} against {counted(len(known), others.noun)}: "
        "pixels, and how they look (64-bit perceptual hash under the eight symmetries)"
    )


def _is_alike(tested: _Images, number: int, others: _Images, other: int) -> bool:
    try:
        return alike(tested.read(number), others.read(other)) >= ALIKE
    except TileError:  # hashed once, gone since
        return True


def _compare_cases(
    findings: Findings, data: Labelled, test: Sequence[int], shared: Sequence[str], index: Index
) -> None:
    """Find the cases of test images among the sources of tiles."""
    cases = {case for number in test if _is_telling(case := data.items[number].source)}
    if not cases:
        return
    sources, firsts = np.unique(index.source_numbers, return_index=True)
    every = sorted({item.source for item in data.items if _is_telling(item.source)})
    names = index.sources
    naming = _naming(every, [names[source] for source in sources])
    known = {case: int(firsts[place]) for case, place in naming.items()}
    named = [f"{case} ({index.name(known[case])})" for case in known if case in cases and case not in shared]
    if named:
        findings.found.append(f"{counted(len(named), 'test case')} among the tiles' cases: {_examples(named)}")
    stated = [case for case in known if case in shared]
    aside = f"; {', '.join(stated)} are among them, but the split itself has them on both sides" if stated else ""
    slides = {data.slide(number) for number in test if data.items[number].source not in {*shared, *known}} - {""}
    places = _slides(index) if slides else {}
    if other := [f"{slide} ({places[slide]})" for slide in sorted(slides) if slide in places]:
        findings.found.append(f"{counted(len(other), 'test slide')} among the tiles' slides: {_examples(other)}")
    count = counted(len(index.sources), "source")
    findings.checked.append(f"{counted(len(cases), 'test case')} against the {count} of the tiles{aside}")
    if not known:
        findings.unchecked.append(
            f"no tile's source ({_examples(index.sources)}) is written as a case of {data.name} "
            f"(such as {min(cases)}): if tiles are of its cases, nothing tells"
        )


def _slides(index: Index) -> dict[str, str]:
    """Sources and files of the tiles by the name of the slide that each may be of; not all say whose a slide is."""
    files = index.table["path" if index.kind == "slides" else "shard"].unique().to_pylist()
    names = index.sources
    sources = (names[source] for source in np.unique(index.source_numbers))
    places = {composed(Path(source).name): source for source in sources}
    return places | {composed(re.sub(r"(-\d{4}\.tar|\.\w+)$", "", Path(file).name)): file for file in files if file}


WORDS, RUNS = r"[^\W_]+", r"[^\W\d_]+|\d+"  # a run is of letters or of digits alone


def _bounded(text: str, parts: str) -> str:
    """The parts of a text in small letters, each between hyphens.

    >>> _bounded("GlaS_9", WORDS), _bounded("GT2001837", RUNS), _bounded("Zoe\\u0308", WORDS)
    ('-glas-9-', '-gt-2001837-', '-zoë-')
    """
    return "".join(f"-{part}" for part in re.findall(parts, composed(text).lower())) + "-"


def _own(case: str) -> str:
    """A case without the name of its data set."""
    return case.partition(":")[2] or case


def _is_telling(case: str) -> bool:
    """Whether a case has words of its own; `-` and `?` stand for one that is not known.

    >>> [case for case in ("glas:9", "n/a", "", "-", "tcga:?", "_") if _is_telling(case)]
    ['glas:9', 'n/a']
    """
    return re.search(WORDS, _own(case)) is not None


def _naming(cases: Sequence[str], sources: Sequence[str]) -> dict[str, int]:
    """The first of the sources that names each case, where one does.

    It holds the case's words or, within longer words too, its own part where that is telling: six signs or more, a
    digit among them.

    >>> [len(_naming(["glas:9"], [source])) for source in ("GlaS_9", "train/glas-9", "glas:91", "bioglas-9")]
    [1, 1, 0, 0]
    >>> [len(_naming([case], ["GT2001837"])) for case in ("ebhi-seg:2001837", "2001837", "001837")]
    [1, 1, 0]
    >>> [len(_naming(["tcga:TCGA-A2-A0T2"], [source])) for source in ("TCGA-A2-A0T2-01Z-00-DX1", "TCGA-A2-A0T21")]
    [1, 0]
    """
    every = {parts: "\n".join(_bounded(source, parts) for source in sources) for parts in (WORDS, RUNS)}
    found = {}
    for case in cases:
        own = _own(case)
        telling = len(own) >= 6 and any(sign.isdigit() for sign in own)
        for parts, sought in ((WORDS, case), *([(RUNS, own)] if telling else [])):
            place = every[parts].find(_bounded(sought, parts))
            if place >= 0:
                found[case] = every[parts].count("\n", 0, place)
                break
    return found


def _lineage(findings: Findings, index: Index) -> Iterator[Index]:
    """The tiles of a run, of the runs that it started from or was taught by, and so on; other weights are noted."""
    ahead, runs = [index], set[Path]()
    while ahead:
        index = ahead.pop()
        if index.path in runs:
            continue
        runs.add(index.path)
        yield index
        run = index.path.parent
        for origin, link in _origins(run):
            earlier = tiles_of(Path(origin)) if names_run(origin) else None
            if earlier is not None:
                findings.checked.append(f"the tiles of {origin} too, which {run} {link}")
                ahead.append(earlier)
            elif origin != "random":
                what = f"what {run} {link} ({origin})"
                findings.unchecked.append(f"{what} was pretrained on data that are not checked")


def _origins(run: Path) -> Iterator[tuple[str, str]]:
    """The weights that a run has learned from, and how."""
    try:
        recipe = json.loads((run / "recipe.json").read_text())
        yield str(recipe["encoder"]["init"]), "started from"
        method = recipe.get("method", {})
        if method.get("kind") == "distil":
            teacher, weights = method["teacher"], method["weights"]
            if not DistilConfig(teacher).by_run:
                teacher = weights if weights == "random" or names_run(weights) else f"{teacher}, {weights}"
            yield teacher, "learned from"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield "weights that are not known (no readable recipe.json)", "started from"


def _note_unread(findings: Findings, index: Index, unreadable: dict[int, str]) -> None:
    """Tiles whose pixels were not compared: a few are stated, more are a finding."""
    if not unreadable:
        return
    first = next(iter(unreadable.values()))
    line = f"{len(unreadable):,} of {counted(len(index), 'pretraining tile')} cannot be read (the first: {first})"
    if len(unreadable) <= UNREAD * len(index):
        findings.unchecked.append(line)
    else:
        command = resume_command(index.path.parent)
        findings.found.append(
            f"{line} and may be test images; if they were moved, say where to: {command} --data PLACE"
        )


def _examples(words: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f", and {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
