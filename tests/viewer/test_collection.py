"""What the places that people give hold, and a sentence for what cannot be shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest

from colocate.base.errors import UserError
from colocate.viewer.collection import Collection, collect
from tests.phantom_slide import painted, write_pyramid
from tests.viewer.conftest import World


def counts(collection: Collection) -> list[list[int]]:
    return [[len(made) for made in shown.made.values()] for shown in collection.slides]


def test_all_that_was_made_of_a_slide_comes_together_in_any_order(world: World) -> None:
    for places in (world.all, world.all[::-1]):
        found = collect(places)
        assert counts(found) == [[1, 1, 1]] and found.runs == [world.run] and found.notes == []
        assert found.slides[0].listed.path == world.listed.path


def test_a_slide_is_the_same_however_its_path_is_written(world: World, tmp_path: Path) -> None:
    """What was made of ../slides is looked at from elsewhere, and folders may be links."""
    (tmp_path / "link").symlink_to(world.slides)
    results = moved(world, tmp_path, str(world.slides / ".." / world.slides.name / "phantom.tif"))
    for slides in (world.slides, tmp_path / "link"):
        for places in ([slides, *results], [*results, slides]):
            assert counts(collect(places)) == [[1, 1, 1]]


@pytest.mark.parametrize(("place", "made"), [("tiles", [1, 0, 0]), ("predictions", [0, 1, 0]), ("features", [0, 0, 1])])
def test_results_alone_bring_their_slide(world: World, place: str, made: list[int]) -> None:
    found = collect([getattr(world, place)])
    assert counts(found) == [made] and found.slides[0].listed.path == world.listed.path
    assert found.slides[0].listed.name == "phantom" and found.slides[0].listed.mpp == 1.0


def test_single_files_are_enough(world: World) -> None:
    files = [world.tiles / "manifest.parquet", world.predictions / "phantom.geojson", world.features / "phantom.h5"]
    assert counts(collect(files)) == [[1, 1, 1]]
    assert counts(collect([world.slides / "phantom.tif"])) == [[0, 0, 0]]


def moved(world: World, tmp_path: Path, was: str = "") -> list[Path]:
    """All of a world but its slide, which is elsewhere than it was."""
    for name in ("tiles", "predictions", "features"):
        shutil.copytree(getattr(world, name), tmp_path / name)
    gone = was or str(tmp_path / "gone" / "phantom.tif")
    marker = tmp_path / "predictions" / "phantom.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"slide": gone}))
    with h5py.File(tmp_path / "features" / "phantom.h5", "r+") as file:
        file["coords"].attrs["slide"] = gone
    table = tmp_path / "tiles" / "slides.csv"
    table.write_text(table.read_text().replace(str(world.listed.path), gone))
    return [tmp_path / name for name in ("tiles", "predictions", "features")]


def test_a_slide_that_has_moved_is_known_by_its_file(world: World, tmp_path: Path) -> None:
    results = moved(world, tmp_path)
    assert counts(collect([world.slides, *results])) == [[1, 1, 1]]
    write_pyramid(tmp_path / "others" / "phantom.tif", painted(60, 50), 0.5, 1)  # of the same name, but not as long
    found = collect([tmp_path / "others", *results])
    assert counts(found) == [[0, 0, 0]] and len(found.notes) == 3 and found.slides[0].listed.mpp is None
    with pytest.raises(UserError, match=r"its slide .*gone/phantom\.tif is not there; give the slide as well"):
        collect(results)


def test_what_was_made_of_a_file_that_has_changed_is_left_out(world: World, tmp_path: Path) -> None:
    results = moved(world, tmp_path)
    write_pyramid(tmp_path / "gone" / "phantom.tif", painted(60, 50), 0.5, 1)
    found = collect([tmp_path / "gone", *results])
    assert counts(found) == [[0, 0, 0]] and found.slides[0].listed.mpp is None
    assert all("gone/phantom.tif has changed since" in note for note in found.notes) and len(found.notes) == 3


def test_results_at_two_resolutions_of_a_slide_are_told(world: World, tmp_path: Path) -> None:
    """As of a slide that says none, after another --slide-mpp: only one of both can be the scale that is shown."""
    shutil.copytree(world.predictions, tmp_path / "p")
    marker = tmp_path / "p" / "phantom.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"level0_mpp": 0.5}))
    found = collect([world.tiles, tmp_path / "p"])
    assert found.slides[0].listed.mpp == 1.0 and counts(found) == [[1, 1, 0]]
    assert "takes its slide for 0.5 micrometres per pixel, but is shown with a scale of 1" in found.notes[0]


def test_a_tiling_of_an_older_version_says_what_to_do(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.tiles, tmp_path / "tiles")
    table = tmp_path / "tiles" / "slides.csv"
    table.write_text(table.read_text().replace(",bytes,", ",size_before,"))
    with pytest.raises(UserError, match=r"slides\.csv is of an older version: run the same `colocate tile` again"):
        collect([tmp_path / "tiles"])


def test_what_is_damaged_is_left_out_with_a_sentence(world: World, tmp_path: Path) -> None:
    for name in ("predictions", "features"):
        shutil.copytree(getattr(world, name), tmp_path / name)
    (tmp_path / "features" / "cut.h5").write_bytes((world.features / "phantom.h5").read_bytes()[:900])
    (tmp_path / "predictions" / "cut.geojson").write_text("{")
    (tmp_path / "predictions" / "cut.csv").touch()  # which `predict` writes too
    (tmp_path / "predictions" / "begun.geojson").write_text("{")
    (tmp_path / "predictions" / "begun.json").write_text('{"settings": {"bytes": 3}, "finished": false}')
    found = collect([tmp_path / "predictions", tmp_path / "features"])
    assert counts(found) == [[0, 1, 1]]
    assert ["begun" in note or "cut" in note for note in found.notes] == [True] * 3
    assert all("run that command again" in note for note in found.notes)


def test_annotations_beside_slides_are_one_note(world: World, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.geojson").write_text("[]")
    (note,) = collect([world.slides, tmp_path]).notes
    assert "a.geojson is left out: `colocate predict` did not write it (nor 2 more like it)" in note


def test_places_without_anything_are_one_sentence(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tiling").mkdir()
    (tmp_path / "tiling" / "tiling.json").write_text("{}")
    (tmp_path / "README.md").write_text("no slide")
    for name, says in (
        ("README.md", "is no slide"),
        ("empty/../README.md", "is no slide"),
        ("nowhere", "does not exist"),
        ("empty", "hold no slides"),
        ("tiling", "no manifest.parquet yet"),
    ):
        with pytest.raises(UserError, match=f"{Path(name).name}.*{says}"):
            collect([tmp_path / name])
    with pytest.raises(UserError, match="nothing to show"):
        collect([])


def test_results_beside_slides_do_not_hide_slides(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.predictions, tmp_path / "both")
    write_pyramid(tmp_path / "both" / "other.tif", painted(60, 50), 1.0, 1)
    assert sorted(shown.listed.name for shown in collect([tmp_path / "both"]).slides) == ["other", "phantom"]
