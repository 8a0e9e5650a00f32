"""Objects outlined on whole slides in QuPath: SLIDE.geojson beside each slide, in the slide's pixels.

Nobody outlines every gland of a slide. So regions say where all of them are: rectangles of QuPath's class `Region*`,
in which every object is outlined. They become the images; what lies outside of them is left out.
SRC/items.csv may say more of the slides: columns path (its name, with or without ending), source (case), mpp, split;
also of those without outlines, whose cases `colocate start` must know.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import shapely
import torch
from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import absolute, check_utf8, files_below
from colocate.base.shapes import Feature, rasterise, read_geojson
from colocate.base.tables import TABLES
from colocate.base.text import composed
from colocate.datasets.files import boxes, entries
from colocate.datasets.geojson import NO_POLYGON, POLYGONS, class_of, objects_in, outline_files
from colocate.datasets.labelled import REGIONS
from colocate.datasets.outlines import MENDED, Canvas, Remarks
from colocate.datasets.own import Known, caution, read_items, split_by_case
from colocate.datasets.writer import Converted, Draft, Facts
from colocate.slides.listing import Listed, find_slides, slides_below
from colocate.slides.readers import ENDINGS, PLAIN_ENDINGS, one_a_series
from colocate.slides.slide import Slide

REGION = "Region*"
RECTANGLE = 0.98  # of its box that a rectangle drawn by hand covers
OUTSIDE = f"Objects outside of every {REGION}, left out"
HOW = f"draw rectangles in which every object is outlined, and give them the class {REGION} (it is in QuPath's list)"


class _Piece(NamedTuple):
    """A region of a slide, or a part of one that is larger than a piece may be."""

    name: str
    slide: Slide
    listed: Listed
    known: Known
    file: Path
    """Of the outlines."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in the slide's pixels."""
    objects: list[tuple[Feature, str]]
    """What lies in it, at least in part, and its class."""

    @property
    def source(self) -> str:
        """Its case: where none is given, the slide, by the name that its tiles have (in any folder the same)."""
        stem = self.slide.path.stem
        return composed(self.known.source or (stem if Path(self.listed.name).name == stem else self.listed.name))


def drafts(
    src: Path,
    *,
    images: str = ".",
    mpp: float | None = None,
    piece: int = 1024,
    test_share: float | None = None,
    skip_broken: bool = False,
    slide_mpp: float | None = None,
) -> Converted:
    """Read the regions of the slides that have a SLIDE.geojson in `src`. `images`, seen from there, is a folder of
    slides, which may lie below it, or a table. What items.csv does not say of a slide, the table does; `slide_mpp` is
    of slides that do not say their own.

    Images have `mpp` micrometres per pixel (0.5 if not given) and at most `piece` px a side. Test images are of other
    slides (or cases) than training images; where all are of one, they are other regions of it, which is said.

    Raises UserError: outlines without their slide, a slide that cannot be read or is coarser than `mpp`, no region, one
    that is no rectangle or lies outside of its slide, or a broken object (unless `skip_broken`).
    """
    mpp = 0.5 if mpp is None else mpp
    if piece < 32:
        raise UserError(f"--piece {piece} is too small to show tissue: give 32 or more")
    slides = _slides(src / images, slide_mpp)
    files = annotation_files(src, slides)
    if lonely := [file for name, file in files.items() if name not in slides]:
        raise UserError(f"{lonely[0]} has no slide of its name in {src / images}: put it there, or give --images")
    items = read_items(src / "items.csv", list(files), None, others=slides)
    known = {name: items[name] for name in files}
    remarks, pieces = Remarks(), list[_Piece]()
    for name, file in files.items():
        if len(slides[name]) > 1:
            said = f"has two slides called {name}, and {file.name} is of one of them"
            raise UserError(f"{src / images} {said}: rename the other")
        (listed,) = slides[name]
        said = "" if listed.source == listed.name else listed.source  # a table that says none has the name
        known[name] = known[name]._replace(source=known[name].source or said)
        pieces += _pieces(name, listed, file, known[name], mpp, piece, remarks)
    classes = sorted({class_ for one in pieces for _, class_ in one.objects})
    if not classes:
        raise UserError(f"{src} has regions without an object in any of them: outline the objects too")
    scheme, parts, said = _split(pieces, test_share, src / "items.csv")
    for one in pieces:  # a broken object is named before anything is written
        _objects(one, mpp, remarks, skip_broken)
    name = absolute(src).name
    said = said or caution(name, known.values(), "slides")
    notes = (*said, f"{REGIONS}, read at {mpp:g} micrometres per pixel.", *remarks.notes())
    facts = Facts(name, "instances", tuple(classes), "Not stated.", notes=notes)
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    split = zip(pieces, parts, strict=True)
    return facts, (_draft(one, mpp, numbers, {scheme: part}, skip_broken) for one, part in split)


def annotation_files(src: Path, slides: Collection[str] = ()) -> dict[str, Path]:
    """The files of outlines by the names of their slides. Raises UserError if there is none, or no such folder."""
    files = outline_files(src, slides)
    if not files:
        raise UserError(f"{src} holds no .geojson: export the annotations there (QuPath: File, Export objects)")
    return files


def _slides(place: Path, slide_mpp: float | None) -> dict[str, list[Listed]]:
    """The slides of a table, or of a folder and those below it, by the names of their files; several may have one."""
    if place.suffix.lower() in TABLES and not place.is_dir():
        slides = find_slides([place], slide_mpp)
    else:
        plain = [path for path in entries(place) if path.suffix.lower() in PLAIN_ENDINGS and path.is_file()]
        below = [] if plain and not any(files_below(place, ENDINGS)) else one_a_series(slides_below(place))
        slides = [Listed(path.stem, path, source=path.stem, unsaid_mpp=slide_mpp) for path in (*plain, *below)]
    found: dict[str, list[Listed]] = {}
    for listed in slides:
        check_utf8(listed.path)
        found.setdefault(composed(listed.path.stem), []).append(listed)
    return found


def _pieces(
    name: str, listed: Listed, file: Path, known: Known, mpp: float, piece: int, remarks: Remarks
) -> Iterator[_Piece]:
    """The regions of a slide in pieces, each with its objects."""
    own = listed.mpp if math.isnan(known.mpp) else known.mpp
    slide = Slide.open(listed.path, own, listed.unsaid_mpp)
    slide.check_shows(mpp)
    regions, others = list[Feature](), list[Feature]()
    for feature in read_geojson(file):  # QuPath counts from the scanned part's corner
        moved = shapely.transform(feature.shape, lambda points: points + slide.origin)
        (regions if class_of(feature, file) == REGION else others).append(feature._replace(shape=moved))

    def remark(what: str, name: str) -> None:
        remarks.add(what, f"{file.name}, {name}")

    objects = []
    for feature, class_ in objects_in(others, file, remark):
        if feature.kind in POLYGONS:
            objects.append((feature, class_))
        else:
            remark(NO_POLYGON, feature.name)
    if not regions:
        raise UserError(f"{file} has no annotation of class {REGION}: {HOW}")
    inside: set[int] = set()
    tree = shapely.STRtree([feature.shape for feature, _ in objects])
    for region in regions:
        left, top, right, bottom = _rectangle(region, slide, file)
        size = [max(1, round((end - start) * slide.mpp / mpp)) for start, end in ((left, right), (top, bottom))]
        for x, y, x_end, y_end in boxes(size[1], size[0], piece):
            across, down = (right - left) / size[0], (bottom - top) / size[1]
            box = (left + x * across, top + y * down, left + x_end * across, top + y_end * down)
            own = sorted(tree.query(shapely.box(*box), predicate="intersects").tolist())
            inside.update(own)
            place = f"{name}_{round(box[0])}_{round(box[1])}"
            yield _Piece(place, slide, listed, known, file, box, [objects[number] for number in own])
    for number, (feature, _) in enumerate(objects):
        if number not in inside:
            remark(OUTSIDE, feature.name)
        elif feature.mended:
            remark(MENDED, feature.name)


def _rectangle(region: Feature, slide: Slide, file: Path) -> tuple[float, float, float, float]:
    """The box of a region, cut to its slide. Raises UserError if it is no rectangle, or lies outside."""
    if not region.shape.area or region.shape.area < RECTANGLE * shapely.box(*region.shape.bounds).area:
        raise UserError(f"{file}, {region.name} is a {REGION} but no upright rectangle: {HOW}")
    left, top, right, bottom = (float(round(edge)) for edge in region.shape.bounds)  # else pixels would be mixed
    box = max(left, 0.0), max(top, 0.0), min(right, float(slide.width)), min(bottom, float(slide.height))
    if box[0] >= box[2] or box[1] >= box[3]:
        size = f"{slide.width} x {slide.height} px"
        raise UserError(f"{file}, {region.name} lies outside of {slide.path} ({size}): are they of one slide?")
    return box


def _split(pieces: list[_Piece], test_share: float | None, table: Path) -> tuple[str, list[str], tuple[str, ...]]:
    """The scheme, what each piece is for, and what is to be said of that."""
    if any(one.known.split for one in pieces):
        if test_share is not None:
            raise UserError(f"{table} gives a split: leave out --test-share, or remove the split there")
        return "given", [one.known.split for one in pieces], ()
    cases = [one.source for one in pieces]
    share = 0.2 if test_share is None else test_share
    if len(set(cases)) > 1:
        return "slides", split_by_case(cases, share), ()
    if len(pieces) < 2:
        raise UserError(f"{pieces[0].file} has only one {REGION}, and another is needed to test on: {HOW}")
    parts = split_by_case([one.name for one in pieces], share)
    train, test = ([one for one, part in zip(pieces, parts, strict=True) if part == side] for side in ("train", "test"))
    for one, other in product(train, test):
        if one.file == other.file and shapely.box(*one.box).intersection(shapely.box(*other.box)).area:
            both = f"has two {REGION} that overlap, one to train and one to test on"
            raise UserError(f"{one.file} {both}: draw them apart")
    return "regions", parts, ("All images are of one slide or patient: scores say nothing of other patients.",)


def _objects(one: _Piece, mpp: float, remarks: Remarks, skip: bool) -> tuple[Int32[Tensor, "h w"], dict[int, str]]:
    """See `Canvas.finish`."""
    left, top, right, bottom = one.box
    scale = mpp / one.slide.mpp
    width, height = (max(1, round((end - start) / scale)) for start, end in ((left, right), (top, bottom)))
    canvas = Canvas(height, width, one.file, remarks, skip=skip)
    for feature, class_ in one.objects:
        shape = shapely.transform(feature.shape, lambda points: (points - (left, top)) / scale)
        patch = rasterise(shape, height, width)
        if patch.mask.any() or not feature.shape.intersects(shapely.box(*one.box).exterior):  # a sliver may be empty
            canvas.patch(feature.name, patch, class_)
    return canvas.finish()


def _draft(one: _Piece, mpp: float, numbers: dict[str, int], parts: dict[str, str], skip: bool) -> Draft:
    ids, names = _objects(one, mpp, Remarks(), skip)
    height, width = ids.shape
    image = torch.tensor(one.slide.read(*one.box[:2], width, height, mpp)).permute(2, 0, 1).contiguous()
    return Draft(one.name, image, ids, one.source, mpp, parts, {id: numbers[name] for id, name in names.items()})
