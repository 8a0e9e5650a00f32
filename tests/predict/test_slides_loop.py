"""The loop over slides: what is there is skipped, what fails is set aside, what is no slide's fault ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.base.errors import TileError, UserError
from colocate.base.files import write_atomically
from colocate.slides.listing import Listed
from colocate.slides.runner import Meter, Quarantine, Tally, for_each_slide

SLIDES = [Listed(name, Path(f"{name}.svs")) for name in "abcd"]


def test_each_slide_is_worked_on_once_and_failures_are_tried_again(tmp_path: Path) -> None:
    done: set[str] = {"a"}
    broken = {"c"}

    def work(slide: Listed, meter: Meter) -> None:
        if slide.name in broken:
            raise TileError(f"{slide.path} is damaged")
        meter.begin(3)
        meter.advance(3)
        done.add(slide.name)

    def again() -> Tally:
        return for_each_slide(SLIDES, lambda slide: slide.name in done, work, tmp_path, "tile")

    assert again() == Tally(worked=2, there=1, failed=1)
    assert Quarantine(tmp_path / "failed.csv").failed == {"c": ("c.svs", "c.svs is damaged")}
    assert again() == Tally(worked=0, there=3, failed=1)
    broken.clear()
    assert again() == Tally(worked=1, there=3, failed=0)
    assert not (tmp_path / "failed.csv").exists()


def test_a_slide_that_was_done_elsewhere_is_no_failure_any_more(tmp_path: Path) -> None:
    Quarantine(tmp_path / "failed.csv").add("a", Path("a.svs"), "once")
    for_each_slide(SLIDES, lambda slide: True, lambda *_: None, tmp_path, "tile")
    assert not (tmp_path / "failed.csv").exists()


def test_a_table_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "failed.csv").write_text("name,why\na,late\n")
    with pytest.raises(UserError, match=r"failed\.csv is there and is not colocate's: choose another --out"):
        for_each_slide(SLIDES, lambda slide: True, lambda *_: None, tmp_path, "tile")


def test_what_is_no_fault_of_a_slide_ends_the_loop(tmp_path: Path) -> None:
    worked: list[str] = []

    def work(slide: Listed, meter: Meter) -> None:
        worked.append(slide.name)
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="full"):
        for_each_slide(SLIDES, lambda slide: False, work, tmp_path, "tile")
    assert worked == ["a"] and not (tmp_path / "failed.csv").exists()


def test_refusals_come_before_any_work(tmp_path: Path) -> None:
    def done(slide: Listed) -> bool:
        if slide.name == "d":
            raise UserError("d has other settings")
        return False

    worked: list[str] = []
    with pytest.raises(UserError, match="other settings"):
        for_each_slide(SLIDES, done, lambda slide, _: worked.append(slide.name), tmp_path, "tile")
    assert worked == []


def test_a_name_too_long_for_files_is_a_failure_of_its_slide_alone(tmp_path: Path) -> None:
    """Names of 208 bytes leave room for endings and for those of unfinished files."""
    names = ["a" * 208, "b" * 209, "c" * 251, "\u00e9" * 105, "d" * 300 + "/e", "sub/" + "f" * 230, "g"]
    slides = [Listed(name, Path(f"{name}.svs")) for name in names]

    def done(slide: Listed) -> bool:
        return (tmp_path / "out" / f"{slide.name}.json").exists()

    def work(slide: Listed, meter: Meter) -> None:
        write_atomically(tmp_path / "out" / f"{slide.name}-0000.tar", "")
        write_atomically(tmp_path / "out" / f"{slide.name}.json", "")

    assert for_each_slide(slides, done, work, tmp_path / "out", "tile") == Tally(worked=2, there=0, failed=5)
    failed = Quarantine(tmp_path / "out" / "failed.csv").failed
    assert sorted(failed) == sorted(names[1:6])
    assert all(
        "File name too long): rename it, or give it a shorter one in a table" in said for _, said in failed.values()
    )


def test_a_file_or_mask_that_cannot_be_looked_at_has_no_identity(tmp_path: Path) -> None:
    too_long = Path("x" * 300)
    assert Listed("a", too_long, mask=too_long).identity()["bytes"] == 0


def test_nothing_but_failures_is_an_error_that_gives_each_reason_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(slide: Listed, meter: Meter) -> None:
        raise TileError(f"{slide.path} is damaged")

    with pytest.raises(UserError) as caught:
        for_each_slide(SLIDES, lambda slide: False, work, tmp_path, "tile")
    assert str(caught.value) == f"none of 4 slides went well: {tmp_path}/failed.csv says why"
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"note: {name} is left out: {name}.svs is damaged" for name in "abcd"]
