"""Annotations on whole slides: regions become images, with every object in its place; what is wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from colocate.base.errors import UserError
from colocate.base.shapes import outline
from colocate.cli.main import main
from colocate.datasets import qupath
from colocate.datasets.geojson import STARRED
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from colocate.slides.listing import find_slides
from colocate.slides.slide import Slide
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.prepare.releases import save
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


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    src = tmp_path_factory.mktemp("annotations") / "labels"
    for seed in range(3):
        annotate(src, seed, box(130, 140, 330, 300), box(300.4, 130, 380.4, 230))
    (src / "other.tif").write_bytes((src / "s0.tif").read_bytes())  # a slide that nobody annotated
    return src


@pytest.fixture
def src(annotations: Path, tmp_path: Path) -> Path:
    return shutil.copytree(annotations, tmp_path / "labels")


def prepared(src: Path, **options: object) -> Labelled:
    facts, drafts = qupath.drafts(src, **options)  # pyright: ignore
    return write(src.parent / "out", facts, drafts)


@pytest.fixture(scope="module")
def plain(annotations: Path) -> Labelled:
    """What is made of the annotations as they are."""
    return prepared(annotations)


def test_an_ome_tiff_may_be_called_without_ome(src: Path) -> None:
    """QuPath takes .ome.tif for one ending; a.ome.geojson and a.ome.tif.geojson are as good."""
    for seed, ending in enumerate((".geojson", ".ome.geojson", ".ome.tif.geojson")):
        (src / f"s{seed}.tif").rename(src / f"s{seed}.ome.tif")
        (src / f"s{seed}.geojson").rename(src / f"s{seed}{ending}")
    (src / "items.csv").write_text("path,source\ns0.ome.tif,p\ns1.ome,q\ns2.ome.tif,r\n")
    assert {item.source for item in prepared(src).items} == {"p", "q", "r"}


def test_the_command_says_what_to_leave_out_of_pretraining(src: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["prepare", "qupath", str(src), str(src.parent / "data")])
    data = Labelled.open(src.parent / "data")
    (tested,) = {data.items[number].source for number in data.test("slides")}
    assert (
        f"to test on and all others of their patients (`start` does so): --hold-out slide={tested}\n"
        in capsys.readouterr().out
    )
    (src / "items.csv").write_text("path,source,split\ns0,p,train\ns1,p,test\ns2,q,test\n")  # p is trained on as well
    main(["prepare", "qupath", str(src), str(src.parent / "given")])
    assert "(`start` does so): --hold-out slide=s2\n" in capsys.readouterr().out


def test_regions_become_images_with_their_objects(annotations: Path, plain: Labelled) -> None:
    assert len(plain.items) == 6 and plain.classes == ("gland",)
    for number, item in enumerate(plain.items):
        slide = Slide.open(annotations / f"{item.source}.tif")
        left, top = (int(place) for place in item.name.split("_")[1:])
        shown = plain.image(number).permute(1, 2, 0).numpy()
        assert np.array_equal(shown, slide.read(left, top, item.width, item.height))
        _, ids = tissue_slide(SIDE, 0.5, int(item.source[1:]))
        truth = ids[top : top + item.height, left : left + item.width]
        found = plain.mask(number).numpy()
        assert np.array_equal(found > 0, truth > 0)
        inside = truth > 0
        assert len(np.unique(found[inside & (found > 0)])) == len(np.unique(truth[inside]))
    assert not plain.shared_sources("slides")
    assert {item.splits["slides"] for item in plain.items} == {"train", "test"}
    assert any(note.startswith("Objects outside of every Region*, left out: ") for note in plain.notes)


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


def test_large_regions_come_in_pieces_that_join_without_a_seam(annotations: Path, plain: Labelled) -> None:
    _, drafts = qupath.drafts(annotations, piece=90)
    pieces = [draft for draft in drafts if draft.source == "s0"][:6]
    assert [draft.name for draft in pieces] == [f"s0_{left}_{top}" for top in (140, 220) for left in (130, 196, 263)]
    rows = [torch.cat([draft.mask > 0 for draft in pieces[start : start + 3]], 1) for start in (0, 3)]
    assert ((torch.cat(rows) == (plain.mask(0) > 0)).float().mean() > 0.995).item()


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


def test_coordinates_begin_at_the_scanned_part(src: Path, plain: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of formats with bounds (MRXS, SCN), whose slides QuPath shows from there on."""
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
    assert same(plain, prepared(src))


def same(one: Labelled, other: Labelled) -> bool:
    numbers = range(len(one.items))
    alike = [torch.equal(one.image(n), other.image(n)) and torch.equal(one.mask(n), other.mask(n)) for n in numbers]
    return len(one.items) == len(other.items) and all(alike)


def test_slides_that_do_not_say_their_resolution(src: Path, plain: Labelled) -> None:
    for path in src.glob("s*.tif"):
        slide = Slide.open(path)
        save(slide.read(0, 0, slide.width, slide.height), path.with_suffix(".png"))
        path.unlink()
    with pytest.raises(UserError, match=r"s0\.png does not say its micrometres per pixel: say it with --slide-mpp"):
        qupath.drafts(src)
    assert same(plain, prepared(src, slide_mpp=0.5))


def test_slides_of_a_table_have_its_resolutions_and_patients(src: Path, plain: Labelled) -> None:
    """As `colocate tile` reads them: the table's word counts before the file's."""
    for seed in range(3):
        (src.parent / f"p{seed}").mkdir()
        (src / f"s{seed}.tif").rename(src.parent / f"p{seed}" / f"s{seed}.tif")
    table = src.parent / "slides.csv"
    table.write_text("path,mpp,source\np0/s0.tif,1,p\np1/s1.tif,1,q\np2/s2.tif,1,\n")
    (src / "items.csv").write_text("path,source\ns0,\ns1,mine\ns2,\n")
    again = prepared(src, images="../slides.csv", mpp=1.0)
    assert same(plain, again) and {item.mpp for item in again.items} == {1.0}
    assert [item.source for item in again.items[::2]] == ["p", "mine", "s2"]
    (src.parent / "p3").mkdir()
    (src.parent / "p0" / "s0.tif").rename(src.parent / "p3" / "s1.tif")
    table.write_text("path,mpp\np1/s1.tif,1\np2/s2.tif,1\np3/s1.tif,1\n")
    (src / "s0.geojson").unlink()
    (src / "items.csv").unlink()
    with pytest.raises(UserError, match=r"slides\.csv has two slides called s1, and s1\.geojson is of one of them"):
        qupath.drafts(src, images="../slides.csv", mpp=1.0)


def test_a_slide_that_a_table_names_is_the_case_that_its_tiles_say(src: Path) -> None:
    """Else the leakage check would not find it among them."""
    (src / "slides.csv").write_text("path,slide\ns0.tif,case1-a\ns1.tif,case2-a\ns2.tif,\n")
    data = prepared(src, images="slides.csv")
    assert {item.source for item in data.items} == {one.source for one in find_slides([src / "slides.csv"])}


def test_slides_may_lie_in_folders_of_their_own(src: Path, plain: Labelled) -> None:
    """As archives of slides give them; `colocate tile` looks there too. They are split alike in any folder."""
    for seed in range(3):
        (src / "slides" / f"p{seed}").mkdir(parents=True)
        (src / f"s{seed}.tif").rename(src / "slides" / f"p{seed}" / f"s{seed}.tif")
    again = prepared(src, images="slides")
    assert same(plain, again) and [item.splits for item in again.items] == [item.splits for item in plain.items]
    shutil.copy(src / "slides" / "p0" / "s0.tif", src / "slides" / "s0.tif")
    with pytest.raises(UserError, match=r"slides has two slides called s0, and s0\.geojson is of one of them"):
        qupath.drafts(src, images="slides")


def redrawn(src: Path, ring: list[list[float]], of: dict[str, Any], *numbers: int) -> None:
    for number in numbers:
        put(src / f"s{number}.geojson", feature(ring, **of))


TURNED = [[200.0, 150], [250, 200], [200, 250], [150, 200], [200, 150]]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda src: redrawn(src, box(9, 9, 99, 99), classed("gland"), 1),
            r"s1\.geojson has no annotation of class Re",
        ),
        (lambda src: redrawn(src, TURNED, REGION, 1), r"s1\.geojson, feature 1 is a Region\* but no upright rectangle"),
        (
            lambda src: redrawn(src, box(600, 600, 700, 700), REGION, 1),
            r"feature 1 lies outside of .*s1\.tif \(512 x 5",
        ),
        (lambda src: (src / "s1.tif").unlink(), r"s1\.geojson has no slide of its name in"),
        (lambda src: redrawn(src, box(9, 9, 99, 99), REGION, 0, 1, 2), "regions without an object in any of them"),
        (lambda src: [file.unlink() for file in src.glob("*.geojson")], r"holds no \.geojson"),
    ],
)
def test_what_is_wrong_is_named(spoil: Callable[[Path], object], says: str, src: Path) -> None:
    spoil(src)
    with pytest.raises(UserError, match=says):
        prepared(src)


def test_a_slide_too_coarse_is_refused(annotations: Path) -> None:
    with pytest.raises(UserError, match=r"0\.5 micrometres per pixel, which cannot show 0\.25"):
        qupath.drafts(annotations, mpp=0.25)


def test_regions_that_overlap_are_not_on_both_sides(tmp_path: Path) -> None:
    annotate(tmp_path / "one", 0, box(130, 140, 230, 240), box(220, 140, 340, 240))
    with pytest.raises(UserError, match=r"s0\.geojson has two Region\* that overlap, one to train and one to test on"):
        prepared(tmp_path / "one")
