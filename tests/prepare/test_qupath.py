"""Annotations on whole slides: regions become images, with every object in its place; what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from colocate.base.errors import UserError
from colocate.base.shapes import outline
from colocate.datasets import qupath
from colocate.datasets.geojson import STARRED
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from colocate.slides.slide import Slide
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.prepare.test_geojson import classed, feature, put

SIDE = 512
REGION = classed("Region*")


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def annotate(folder: Path, seed: int, *regions: list[list[float]], mpp: float = 0.5, side: int = SIDE) -> np.ndarray:
    """A slide and its annotations, every gland outlined; returns the glands' ids."""
    pixels, ids = tissue_slide(side, mpp, seed)
    write_pyramid(folder / f"s{seed}.tif", pixels, mpp)
    glands = []
    for number in np.unique(ids[ids > 0]).tolist():
        shape = outline(ids == number, 0, 0)
        for part in shapely.get_parts(shape):
            rings = [shapely.get_coordinates(ring).tolist() for ring in (part.exterior, *part.interiors)]
            glands.append(feature(*rings, **classed("gland")))
    put(folder / f"s{seed}.geojson", *glands, *(feature(region, **REGION) for region in regions))
    return ids


@pytest.fixture
def src(tmp_path: Path) -> Path:
    src = tmp_path / "labels"
    for seed in range(3):
        annotate(src, seed, box(130, 140, 330, 300), box(300.4, 130, 380.4, 230))
    (src / "other.tif").write_bytes((src / "s0.tif").read_bytes())  # a slide that nobody annotated
    return src


def prepared(src: Path, **options: object) -> Labelled:
    facts, drafts = qupath.drafts(src, **options)  # pyright: ignore
    return write(src.parent / "out", facts, drafts)


def test_regions_become_images_with_their_objects(src: Path) -> None:
    data = prepared(src)
    assert len(data.items) == 6 and data.classes == ("gland",)
    for number, item in enumerate(data.items):
        slide = Slide.open(src / f"{item.source}.tif")
        left, top = (int(place) for place in item.name.split("_")[1:])
        assert np.array_equal(
            data.image(number).permute(1, 2, 0).numpy(), slide.read(left, top, item.width, item.height)
        )
        _, ids = tissue_slide(SIDE, 0.5, int(item.source[1:]))
        truth = ids[top : top + item.height, left : left + item.width]
        found = data.mask(number).numpy()
        assert np.array_equal(found > 0, truth > 0)
        inside = truth > 0
        assert len(np.unique(found[inside & (found > 0)])) == len(np.unique(truth[inside]))
    assert not data.shared_sources("slides")
    assert {item.splits["slides"] for item in data.items} == {"train", "test"}


def test_images_have_the_resolution_asked_for_and_objects_stay_on_their_pixels(src: Path) -> None:
    data = prepared(src, mpp=1.0)
    first = data.items[0]
    assert (first.width, first.height, first.mpp) == (100, 80, 1.0)
    _, ids = tissue_slide(SIDE, 0.5, 0)
    truth = torch.from_numpy((ids > 0)[140:300, 130:330].astype(np.float32))
    halved = truth.view(80, 2, 100, 2).mean((1, 3))
    found = data.mask(0) > 0
    certain = (halved == 0) | (halved == 1)
    assert (found[certain] == (halved[certain] == 1)).float().mean() > 0.995


def test_large_regions_come_in_pieces_that_join_without_a_seam(src: Path) -> None:
    whole = prepared(src)
    _, drafts = qupath.drafts(src, piece=90)
    pieces = [draft for draft in drafts if draft.source == "s0"][:6]
    assert [draft.name for draft in pieces] == [f"s0_{left}_{top}" for top in (140, 220) for left in (130, 196, 263)]
    rows = [torch.cat([draft.mask > 0 for draft in pieces[start : start + 3]], 1) for start in (0, 3)]
    assert ((torch.cat(rows) == (whole.mask(0) > 0)).float().mean() > 0.995).item()


def test_slides_whose_patient_is_not_known_are_said(src: Path) -> None:
    said = "labels names {}: a patient may be on both sides."
    assert qupath.drafts(src)[0].notes[0] == said.format("no cases")
    table = src / "items.csv"
    table.write_text("path,source\ns0,p\ns1,p\ns2,\n")
    assert qupath.drafts(src)[0].notes[0] == said.format("no case for 1 of its 3 slides")
    table.write_text("path,source\ns0,p\ns1,p\ns2,q\n")
    assert qupath.drafts(src)[0].notes[0].startswith("Images are regions of slides")


def test_what_qupath_marks_is_no_object(src: Path) -> None:
    made = json.loads((src / "s0.geojson").read_text())["features"]
    put(src / "s0.geojson", *made, feature(box(140, 150, 200, 200), **classed("Ignore*")))
    facts, _ = qupath.drafts(src)
    assert facts.classes == ("gland",) and f"{STARRED}: 1 (s0.geojson, feature {len(made) + 1})." in facts.notes


def test_a_single_slide_is_split_by_region_and_says_so(tmp_path: Path) -> None:
    annotate(tmp_path / "one", 0, box(130, 140, 230, 240), box(240, 140, 340, 240))
    data = prepared(tmp_path / "one")
    assert sorted(item.splits["regions"] for item in data.items) == ["test", "train"]
    assert data.notes[0] == "All images are of one slide or patient: scores say nothing of other patients."
    assert data.shared_sources("regions") == {"s0"}


def test_what_lies_in_no_region_is_left_out_and_counted(src: Path) -> None:
    notes = prepared(src).notes
    assert any(note.startswith("Objects outside of every Region*, left out: ") for note in notes)


def test_what_was_done_to_objects_is_said(tmp_path: Path) -> None:
    src = tmp_path / "labels"
    bow = [[140, 140], [150, 150], [150, 140], [140, 150], [140, 140]]
    large, inside, small = box(180, 180, 240, 220), box(181, 181, 239, 219), box(160, 160, 160.2, 160.2)
    for seed in range(2):
        annotate(src, seed)
        glands = (feature(ring, **classed("gland")) for ring in (large, inside, large, bow, small))
        put(src / f"s{seed}.geojson", *glands, feature(box(130, 130, 280, 240), **REGION))
    with pytest.raises(UserError, match=r"s0\.geojson, feature 5 encloses no pixel: mend it"):
        qupath.drafts(src)
    said = " ".join(prepared(src, skip_broken=True).notes)
    for words in ("mended: 2 (s0.geojson, feature 4", "without area, left out: 2", "Objects overlap: ", "wholly under"):
        assert words in said


def test_coordinates_begin_at_the_scanned_part(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of formats with bounds (MRXS, SCN), whose slides QuPath shows from there on."""
    plain = prepared(src)
    images = [plain.image(number) for number in range(6)]
    shift = np.array((7, 11))
    for file in src.glob("*.geojson"):
        document = json.loads(file.read_text())
        for one in document["features"]:
            rings = one["geometry"]["coordinates"]
            one["geometry"]["coordinates"] = [(np.array(ring) - shift).tolist() for ring in rings]
        file.write_text(json.dumps(document))
    real = Slide.open

    def bounded(*words: Any) -> Slide:
        slide = real(*words)
        return Slide(slide.path, slide.mpp, slide.sizes, (7, 11))

    monkeypatch.setattr(Slide, "open", bounded)
    moved = write(src.parent / "moved", *qupath.drafts(src))
    assert all(torch.equal(moved.image(number), image) for number, image in enumerate(images))


def no_region(src: Path) -> None:
    put(src / "s1.geojson", feature(box(150, 150, 180, 180), **classed("gland")))


def turned(src: Path) -> None:
    put(src / "s1.geojson", feature([[200, 150], [250, 200], [200, 250], [150, 200], [200, 150]], **REGION))


def far(src: Path) -> None:
    put(src / "s1.geojson", feature(box(600, 600, 700, 700), **REGION))


def lonely(src: Path) -> None:
    (src / "s1.tif").unlink()


def none_outlined(src: Path) -> None:
    for number in range(3):
        put(src / f"s{number}.geojson", feature(box(130, 140, 230, 240), **REGION))


def empty(src: Path) -> None:
    for file in src.glob("*.geojson"):
        file.unlink()


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (no_region, r"s1\.geojson has no annotation of class Region\*: draw rectangles"),
        (turned, r"s1\.geojson, feature 1 is a Region\* but no upright rectangle"),
        (far, r"s1\.geojson, feature 1 lies outside of .*s1\.tif \(512 x 512 px\)"),
        (lonely, r"s1\.geojson has no slide of its name in"),
        (none_outlined, "regions without an object in any of them"),
        (empty, r"holds no \.geojson"),
    ],
)
def test_what_is_wrong_is_named(break_it: Callable[[Path], None], sentence: str, src: Path) -> None:
    break_it(src)
    with pytest.raises(UserError, match=sentence):
        prepared(src)


def test_a_slide_too_coarse_is_refused(src: Path) -> None:
    with pytest.raises(UserError, match=r"0\.5 micrometres per pixel, which cannot show 0\.25"):
        prepared(src, mpp=0.25)


def test_regions_that_overlap_are_not_on_both_sides(tmp_path: Path) -> None:
    annotate(tmp_path / "one", 0, box(130, 140, 230, 240), box(220, 140, 340, 240))
    with pytest.raises(UserError, match=r"s0\.geojson has two Region\* that overlap, one to train and one to test on"):
        prepared(tmp_path / "one")
