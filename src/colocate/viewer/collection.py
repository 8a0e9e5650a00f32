"""What the places given to `colocate view` hold: slides with what was made of them, and runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import h5py

from colocate.base.errors import TileError, UserError
from colocate.base.files import absolute, read_json
from colocate.base.tables import as_text, read_table
from colocate.prediction.outputs import FEATURE_SETTINGS, beside
from colocate.slides.listing import MANIFEST, SETTINGS, Listed, find_slides
from colocate.slides.manifest import SLIDES, part_path
from colocate.slides.readers import open_reader

Kind = Literal["tiles", "predictions", "features"]
UNLIKE = 0.001  # by how much resolutions of a slide differ that are not just rounded


class Made(NamedTuple):
    """What colocate made of a slide."""

    kind: Kind
    place: Path
    """The slide's part of the manifest; the path of its predictions without their endings; its file of features."""
    folder: str
    """The name of the folder of all that was made at once."""
    slide: Path
    """The slide's path at that time."""
    name: str
    mpp: float
    """Micrometres per pixel of level0 at that time."""
    bytes: int
    """Of the slide's file."""

    def of(self, path: Path) -> bool:
        """Whether a file may be the slide: it is called the same and as long."""
        return path.name == self.slide.name and path.is_file() and path.stat().st_size == self.bytes


@final
@dataclass(eq=False)
class Shown:
    """A slide to be looked at, and what was made of it."""

    listed: Listed
    made: dict[Kind, list[Made]] = field(default_factory=lambda: {"tiles": [], "predictions": [], "features": []})


@final
@dataclass(frozen=True)
class Collection:
    """All that is shown."""

    slides: list[Shown]
    runs: list[Path]
    notes: list[str]
    """What is left out and why, a sentence each."""


def collect(places: Sequence[Path], slide_mpp: float | None = None) -> Collection:
    """Find slides, what colocate made of slides, and runs. `slide_mpp`: of slides that do not say.

    Nothing is opened but slides named one by one, and what says which slide something belongs to. Several things made
    of one slide come together.

    Raises UserError: a place that does not exist, that is no slide, or where nothing can be shown.
    """
    slides: dict[Path, Shown] = {}  # by their files, to which several paths may lead
    runs: list[Path] = []
    results: list[Made] = []
    notes: list[str] = []
    for place in places:
        place = absolute(place.parent if place.name == MANIFEST else place)
        if (place / "recipe.json").is_file():
            runs.append(place)
            continue
        told, made = len(notes), _made(place, notes)
        results += made
        try:
            found = find_slides([place], slide_mpp) if place.is_dir() or not made else []
            if found and found[0].path == place:  # the user says that it is a slide
                open_reader(place).close()
        except UserError:
            if not made and len(notes) == told:
                raise
            continue
        for listed in found:
            slides.setdefault(listed.path.resolve(), Shown(listed))
    for made in results:
        if made.of(made.slide):
            found = slides.setdefault(made.slide.resolve(), Shown(Listed(made.name, made.slide, source=made.name)))
        elif len(alike := [shown for shown in slides.values() if made.of(shown.listed.path)]) == 1:
            found = alike[0]  # it was moved
        else:
            gone = "has changed since" if made.slide.is_file() else "is not there; give the slide as well"
            notes.append(f"{made.place} is left out: its slide {made.slide} {gone}")
            continue
        if found.listed.mpp is None:
            found.listed = replace(found.listed, mpp=made.mpp)
        elif abs(made.mpp / found.listed.mpp - 1) > UNLIKE:
            taken = f"for {made.mpp:g} micrometres per pixel, but is shown with a scale of {found.listed.mpp:g}"
            notes.append(f"{made.place} takes its slide {taken}: make both with the same --slide-mpp")
        found.made[made.kind].append(made)
    if not slides and not runs:
        raise UserError(notes[0] if notes else "nothing to show: give slides, what colocate made of them, or runs")
    return Collection(sorted(slides.values(), key=lambda shown: shown.listed.name), runs, notes)


def _made(place: Path, notes: list[str]) -> list[Made]:
    """What colocate made of slides, in a folder and those below it, or in one file. Raises UserError as `collect`."""
    if place.is_dir() and (place / SETTINGS).is_file():
        if not (place / MANIFEST).is_file():
            raise UserError(f"{place} has no {MANIFEST} yet: let `colocate tile` cut its slides to the end")
        rows = as_text(read_table(place / SLIDES))
        if any("bytes" not in row for row in rows):
            raise UserError(f"{place / SLIDES} is of an older version: run the same `colocate tile` again")
        return [
            Made(
                "tiles",
                part_path(place, row["slide"]),
                place.name,
                Path(row["path"]),
                row["slide"],
                float(row["mpp"]),
                int(row["bytes"]),
            )
            for row in rows
        ]
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    found, others = [], []
    for path in files:
        read = {".geojson": _predicted, ".h5": _features}.get(path.suffix.lower())
        if read is None or not path.is_file():
            continue
        if read is _predicted and not any(beside(path.with_suffix(""), one).is_file() for one in (".json", ".csv")):
            others.append(path)
        else:
            try:
                found.append(read(path, place if place.is_dir() else place.parent))
            except TileError as error:
                notes.append(str(error))
    if others:
        more = f" (nor {len(others) - 1:,} more like it)" if len(others) > 1 else ""
        notes.append(f"{others[0]} is left out: `colocate predict` did not write it{more}; give slides to look at")
    return found


def _predicted(path: Path, folder: Path) -> Made:
    """Predictions, by the marker that ends them. Raises TileError if they are not those of colocate, or not whole."""
    place = path.with_suffix("")
    try:
        said = read_json(beside(place, ".json"))
        size = int(said["settings"]["bytes"])
        slide, mpp = Path(said["slide"]), float(said["level0_mpp"])
    except (UserError, KeyError, TypeError, ValueError) as error:
        message = "is left out: it is not by `colocate predict`, or not whole; run that command again"
        raise TileError(f"{path} {message}") from error
    return Made("predictions", place, folder.name, slide, place.relative_to(folder).as_posix(), mpp, size)


def _features(path: Path, folder: Path) -> Made:
    """Features. Raises TileError if they are not those of colocate."""
    try:
        with h5py.File(path, locking=False) as file:
            settings: Any = json.loads(str(file.attrs[FEATURE_SETTINGS]))
            of_coords: Any = dict(file["coords"].attrs)
        slide = Path(str(of_coords.get("slide", settings["file"])))  # older ones do not say where the slide was
        name, mpp, size = str(of_coords["name"]), float(of_coords["level0_mpp"]), int(settings["bytes"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TileError(f"{path} is left out: it is no file of `colocate features`; run that command again") from error
    return Made("features", path, folder.name, slide, name, mpp, size)
