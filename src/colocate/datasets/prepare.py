"""Bring data sets as released into colocate's own form (see labelled.py): `colocate prepare KIND SRC OUT`.

A converter is a module with one function

    drafts(src: Path, *, partial: bool = False, mpp: float | None = None, ...) -> Converted

that finds the files (naming what is missing or misplaced), and yields a `Draft` for each image, read only when its turn
comes. `writer.write` does the rest. Of the options of `prepare` a converter takes those it has a use for, as keywords
of the same names; any other that the user gave is refused for that kind. It is entered in `CONVERTERS` and `Kind`.
A converter is loaded when it is asked for, and with it torch, which takes seconds.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from colocate.base.errors import UserError
from colocate.base.text import say
from colocate.slides.settings import check_mpp

if TYPE_CHECKING:
    from colocate.datasets.labelled import Labelled
    from colocate.datasets.writer import Converted

Kind = Literal["glas", "crag", "ebhi-seg", "nct-crc-he", "monuseg", "bcss", "folder", "coco", "geojson", "qupath"]
CONVERTERS = {"ebhi-seg": "ebhi"} | {
    kind: kind for kind in ("glas", "crag", "monuseg", "bcss", "folder", "coco", "geojson", "qupath")
}
"""The module of each."""
Parts = Literal["objects", "together"]


def converter(kind: str) -> Callable[..., Converted]:
    """What reads a data set of this kind."""
    return import_module(f"colocate.datasets.{CONVERTERS[kind]}").drafts


def prepare(
    kind: Annotated[Kind, tyro.conf.Positional],
    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    partial: bool = False,
    semantics: bool = False,
    classes: tuple[str, ...] = (),
    ignored: int | None = None,
    mpp: float | None = None,
    test_share: float | None = None,
    images: str | None = None,
    masks: str | None = None,
    parts: Parts | None = None,
    piece: int | None = None,
    skip_broken: bool = False,
    slide_mpp: float | None = None,
) -> None:
    """Convert a labelled data set, as released, to the one form that `colocate evaluate` reads.

    Args:
        kind: Which data set it is, or in which format.
        src: The folder of the files as released (coco: the JSON file).
        out: The new folder of the data set (nct-crc-he: a table .csv of its tiles, for pretraining).
        partial: Accept a number of images that differs from the release.
        semantics: Masks hold the class of each pixel, not the number of its object (folder).
        classes: Names of the classes; with --semantics, those of classes 0, 1, ... (folder).
        ignored: With --semantics, the class of pixels that do not count (folder).
        mpp: Micrometres per pixel, if the files do not state it (folder, coco, geojson, bcss), or of the images
            that are cut from slides; None: 0.5 (qupath).
        test_share: Share of the images to test on, if no split is given; None: 0.2 (folder, coco, geojson,
            qupath).
        images: Name of the folder of images; None: images (folder). Or where the images are, relative to the
            outlines; None: beside them (coco, geojson, qupath, which also takes a table of slides).
        masks: Name of the folder of masks; None: masks (folder).
        parts: What the connected parts with one number in a mask are: objects, as in black and white masks, or
            together one object (folder).
        piece: Largest width and height of the pieces of a region, in pixels; None: 1024 (bcss, qupath).
        skip_broken: Leave out objects without area or outside their image, instead of refusing them (coco, geojson,
            qupath).
        slide_mpp: Micrometres per pixel of slides that do not state it (qupath).
    """
    from colocate.datasets import nct
    from colocate.datasets.writer import check_free, write

    given = {"partial": partial, "semantics": semantics, "classes": classes, "ignored": ignored, "mpp": mpp}
    given |= {"test_share": test_share, "images": images, "masks": masks, "parts": parts, "piece": piece}
    given |= {"skip_broken": skip_broken, "slide_mpp": slide_mpp}
    options = {name: value for name, value in given.items() if not (value is None or value is False or value == ())}
    if not src.exists():
        raise UserError(f"{src} does not exist: give SRC, the files as released, then OUT")
    if mpp is not None:
        check_mpp(mpp, "--mpp")
    check_free(out)
    convert = converter(kind) if kind in CONVERTERS else None
    taken = inspect.signature(convert).parameters if convert else {}
    useful = (*taken, "partial") if convert else ()
    if useless := [f"--{name.replace('_', '-')}" for name in options if name not in useful]:
        raise UserError(f"{kind} has no use for {', '.join(useless)}: leave that out")
    if convert is None:
        for note in nct.list_tiles(src, out):
            say(note)
        say(f"done: pretrain with --data {out}")
        return
    facts, drafts = convert(src, **{name: value for name, value in options.items() if name in taken})
    _say(write(out, replace(facts, prepared_as=kind), drafts, partial=partial))


def _say(data: Labelled) -> None:
    """Print what was written."""
    from colocate.data.rows import quoted
    from colocate.datasets.writer import SHEET

    counts = json.loads((data.folder / "dataset.json").read_text())["counts"]
    cases = f", {counts['sources']:,} cases" if counts["sources"] else ", cases unknown"
    objects = f", {counts['objects']:,} objects" if data.kind == "instances" else ""
    say(f"{data.name}: {counts['images']:,} images{cases}{objects}")
    if each := counts.get("objects an image"):
        none = f", {each['none']:,} without any" if each["none"] else ""
        say(f"objects per image: median {each['median']:g} ({each['least']:,} to {each['most']:,}{none})")
    if doubtful := counts.get("doubtful"):
        some = ", ".join(doubtful[:5])
        say(f"look at {some} ({len(doubtful):,} in all): one object covers most of the image, others have dozens")
    for scheme, parts in counts["parts"].items():
        shared = len(data.shared_sources(scheme))
        said = f" ({shared} cases on both sides)" if shared else ""
        if rest := counts["images"] - sum(parts.values()):
            said += f", {rest:,} in no part"
        say(f"split {scheme}: {', '.join(f'{count:,} {part}' for part, count in parts.items())}{said}")
    total = sum(counts["pixels of class"].values())
    shares = (f"{name} {count / total:.1%}" for name, count in counts["pixels of class"].items())
    say(f"pixels: {', '.join(shares)}")
    say(f"terms: {data.licence}")
    for note in data.notes:
        say(f"note: {note}")
    if slides := sorted({data.slide(number) for number in data.unseen(data.schemes[0])} - {""}):
        held = f"--hold-out {shlex.quote(f'slide={quoted(slides)}')}"
        say(f"pretrain without the slides to test on and all others of their patients (`start` does so): {held}")
    say(f"done: look at {data.folder / SHEET}")
