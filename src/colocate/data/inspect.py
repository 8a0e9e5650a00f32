"""Summarise a data set before pretraining: counts, sizes, colours, duplicates, unreadable files, a contact sheet."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from colocate.base.errors import TileError, UserError, printable
from colocate.base.files import light_png
from colocate.base.processes import cores
from colocate.data.decode import header, pixels
from colocate.data.index import Index
from colocate.data.loader import spaced
from colocate.slides.listing import are_slides

THUMB_PX = 96
GAP_PX = 6
LINE_PX = 11
COLUMNS = 8
COLOURS = (256, 128, 64, 32)  # the most whose PNG is light
PAGE = (235, 235, 235)  # on which an empty, white tile still shows


def contact_sheet(
    thumbs: list[tuple[Image.Image, str, str]], out: Path, side_px: int = THUMB_PX, columns: int = COLUMNS
) -> None:
    """Write thumbs, each with its two lines of caption, as a PNG below 300 kB (with fewer colours, if it must be).

    Raises UserError if `out` cannot be written.
    """
    columns = min(columns, len(thumbs))
    wide, high = side_px + GAP_PX, side_px + 2 * LINE_PX + GAP_PX
    rows = -(-len(thumbs) // columns)
    sheet = Image.new("RGB", (GAP_PX + columns * wide, GAP_PX + rows * high), PAGE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=9)
    for cell, (image, *lines) in enumerate(thumbs):
        left, top = GAP_PX + cell % columns * wide, GAP_PX + cell // columns * high
        sheet.paste(image, (left, top + side_px - image.height))
        for line, text in enumerate(lines):
            draw.text(
                (left, top + side_px + line * LINE_PX), _fitted(draw, text, font, side_px), fill="black", font=font
            )
    try:
        out.write_bytes(light_png(sheet.quantize(most, dither=Image.Dither.NONE) for most in COLOURS))
    except OSError as error:
        raise UserError(
            f"The contact sheet {out} cannot be written ({error.strerror}): choose another place"
        ) from error


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, px: int) -> str:
    """Cut a text to fit under a thumb, at its start: file names differ at their end."""
    shown = text = " ".join(text.splitlines())  # Pillow does not measure several
    while draw.textlength(shown, font) > px:
        text = text[1:]
        shown = "…" + text
    return shown


SHOWN = 48  # tiles on the contact sheet
LISTED = 8  # lines of each kind that `show` prints
TILES_AT_ONCE = 256


@final
@dataclass(frozen=True)
class Summary:
    """What `inspect` found. Counts are of the tiles that were opened, except `tiles` and `sources`."""

    data: str
    tiles: int
    opened: int
    sources: dict[str, int]
    formats: dict[str, int]  # of the bytes, whatever the names end in; "slide" for places in slides
    sizes: dict[tuple[int, int], int]  # (height, width) in pixels, smallest area first
    mpp: dict[float, int]  # micrometres per pixel, nan where unknown
    mean: Float64[np.ndarray, "3"]  # over all pixels, scaled to [0, 1]
    std: Float64[np.ndarray, "3"]
    duplicates: list[list[str]]  # groups of files with the same bytes, of places in slides with the same pixels
    unreadable: dict[str, str]  # name and reason
    labels: int  # tiles with few values, as masks of labels have
    contact_sheet: Path | None  # none if it was not asked for, or no tile could be read


def inspect(
    data: str | Path,
    *,
    root: str | Path | None = None,
    mpp: float | None = None,
    sample: int | None = None,
    out: str | Path | None = None,
) -> Summary:
    """Open the tiles of `data`, or an even `sample` of them, and draw a contact sheet to `out`, if given.

    data, root, mpp: as for `Index.build`. Raises UserError if they are wrong, `data` are slides, or the sheet cannot be
    written.
    """
    root, out = (None if path is None else Path(path) for path in (root, out))
    if are_slides(Path(data)):
        raise UserError(
            f"{data} holds slides, not tiles: look at them with colocate view, or cut them with colocate tile"
        )
    if sample is not None and sample < 1:
        raise UserError(f"A sample of {sample} tiles shows nothing: give --sample 1 or more")
    formats: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    values = np.zeros((3, 256), np.int64)
    same: dict[bytes, list[int]] = {}
    unreadable: dict[str, str] = {}
    labels = 0
    thumbs: list[tuple[Image.Image, str, str]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        index = Index.build(data, Path(folder) / "index.arrow", root=root, mpp=mpp)
        listed = Path(data).is_dir() and index.kind in ("folder", "tar")
        if out is not None and listed and out.resolve().is_relative_to(index.root.resolve()):
            raise UserError(f"{out} lies in {data}, where it would be one more tile: choose another --out")
        # Threads help: reading, decoding and hashing let go of Python's lock. Slides are read by one alone at a time.
        threads = 1 if index.kind == "slides" else min(8, cores())
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        numbers = spaced(range(len(index)), sample or len(index))
        shown = set(spaced(numbers, SHOWN))
        screen = Console(stderr=True)
        starts = range(0, len(numbers), TILES_AT_ONCE)
        for start in track(starts, "Reading tiles", console=screen, disable=not screen.is_terminal):
            some = numbers[start : start + TILES_AT_ONCE]
            for number, seen in zip(some, pool.map(partial(_look, index, shown), some), strict=True):
                name = index.name(number)
                if isinstance(seen, TileError):
                    unreadable[name] = str(seen)
                    continue
                formats[seen.format] += 1
                sizes[seen.size] += 1
                values += seen.values
                labels += looks_like_labels(seen.values)
                same.setdefault(seen.digest, []).append(number)
                if seen.thumb is not None:
                    scale = "" if np.isnan(index.mpp[number]) else f", mpp {index.mpp[number]:g}"  # the font has no µ
                    thumbs.append((seen.thumb, Path(name).name, f"{_size(seen.size)}{scale}"))
        sheet = out if thumbs else None
        if sheet:
            contact_sheet(thumbs, sheet)
        levels = np.arange(256) / 255
        with np.errstate(invalid="ignore"):
            shares = values / values.sum(1, keepdims=True)
        mean = shares @ levels
        tiles = np.bincount(index.source_numbers, minlength=len(index.sources)).tolist()
        scales, counts = np.unique(index.mpp[numbers].astype(np.float64).round(6), return_counts=True)
        return Summary(
            data=str(data),
            tiles=len(index),
            opened=len(numbers),
            sources=dict(zip(index.sources, tiles, strict=True)),
            formats=dict(formats.most_common()),
            sizes=dict(sorted(sizes.items(), key=lambda item: (item[0][0] * item[0][1], item[0]))),
            mpp=dict(zip(scales.tolist(), counts.tolist(), strict=True)),
            mean=mean,
            std=np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1)),
            duplicates=[[index.name(number) for number in group] for group in same.values() if len(group) > 1],
            unreadable=unreadable,
            labels=labels,
            contact_sheet=sheet,
        )


FEW_VALUES = 32


def looks_like_labels(values: Int64[np.ndarray, "3 256"]) -> bool:
    """Whether a tile, by how often each value occurs in each channel, has so few as a mask of labels; not one alone."""
    kinds = (values > 0).sum(1)
    return bool(2 <= kinds.max() <= FEW_VALUES)


def labels_note(labels: int, opened: int) -> str | None:
    """A sentence where some of the tiles that were opened look like masks."""
    if not labels:
        return None
    how = f"{labels:,} of {opened:,} tiles hold {FEW_VALUES} values or fewer"
    return f"{how}, as masks of labels do: give the folder of the images alone"


class _Seen(NamedTuple):
    """What was seen of a tile."""

    format: str
    size: tuple[int, int]
    values: Int64[np.ndarray, "3 256"]
    """How often each value occurs in each channel."""
    digest: bytes
    """Equal for equal tiles."""
    thumb: Image.Image | None
    """Of the tiles on the contact sheet."""


def _look(index: Index, shown: Set[int], number: int) -> _Seen | TileError:
    try:
        if index.kind == "slides":
            region = np.ascontiguousarray(index.read(number).permute(1, 2, 0).numpy())
            data, kind = region.tobytes(), "slide"
        else:
            data = index.packed(number)
            packed = header(data, index.name(number))
            kind = packed.format
            region = pixels(packed).permute(1, 2, 0).numpy()
    except TileError as error:
        return error
    tile = Image.fromarray(region)
    values = np.array(tile.histogram()).reshape(3, 256)
    size, digest = (tile.height, tile.width), blake2b(data, digest_size=16).digest()
    if number not in shown:
        return _Seen(kind, size, values, digest, None)
    tile.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.BOX)  # never enlarged
    return _Seen(kind, size, values, digest, tile)


def show(summary: Summary) -> None:
    """Print a summary for people."""
    table = Table.grid(padding=(0, 2))
    for name, text in _lines(summary):
        if text:
            # Text, for names may look like markup
            table.add_row(Text(name, style="bold"), Text(printable(text), overflow="fold"))
    Console().print(table)


def _lines(summary: Summary) -> Iterator[tuple[str, str]]:
    opened = "all opened" if summary.opened == summary.tiles else f"{summary.opened:,} opened"
    yield "Tiles", f"{summary.tiles:,} in {summary.data}, {opened}"
    yield "Sources", _counts(summary.sources)
    yield "Formats", _counts(summary.formats)
    if summary.sizes:
        smallest, *_, largest = map(_size, [*summary.sizes, *summary.sizes])
        yield "Sizes", _counts({_size(size): count for size, count in summary.sizes.items()})
        yield "", f"smallest {smallest}, largest {largest} (width x height)"
    yield (
        "µm per px",
        _counts({"unknown" if np.isnan(mpp) else f"{mpp:g}": count for mpp, count in summary.mpp.items()}),
    )
    if summary.sizes:
        yield "Mean", " ".join(f"{value:.4f}" for value in summary.mean)
        yield "Std", " ".join(f"{value:.4f}" for value in summary.std)
    more = sum(map(len, summary.duplicates)) - len(summary.duplicates)
    yield "Duplicates", f"{more:,} more copies of {len(summary.duplicates):,} files" if more else "none"
    yield "", _few([_same(group) for group in summary.duplicates])
    yield "Unreadable", f"{len(summary.unreadable):,}" if summary.unreadable else "none"
    yield "", _few(list(summary.unreadable.values()))
    missing = "--out SHEET.png draws one" if summary.sizes else "no tile could be read"
    yield "Labels?", labels_note(summary.labels, summary.opened) or ""
    yield "Contact sheet", str(summary.contact_sheet or f"none: {missing}")


def _same(names: Sequence[str]) -> str:
    """Say that files are equal: three by name, then how many more.

    >>> _same(["a", "b"]), _same(["a", "b", "c", "d"])
    ('a = b', 'a = b, c and 1 more')
    """
    first, *others = names
    return f"{first} = {', '.join(others[:2])}" + (f" and {len(others) - 2:,} more" if len(others) > 2 else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _counts(counts: dict[str, int]) -> str:
    """Join the most common values and their counts.

    >>> _counts({"a": 1, "b": 2000})
    'b (2,000), a (1)'
    """
    commonest = Counter(counts).most_common(LISTED)
    rest = len(counts) - len(commonest)
    listed = ", ".join(f"{name} ({count:,})" for name, count in commonest) or "none"
    return f"{listed} and {rest:,} more" if rest else listed


def _few(lines: list[str]) -> str:
    rest = [f"and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return "\n".join([*lines[:LISTED], *rest])
