"""A table of NCT-CRC-HE's tiles, from small files of the release's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.datasets import nct
from tests.prepare.releases import write_nct


@pytest.mark.parametrize("inside", [False, True])
def test_the_table_lists_every_tile(inside: bool, tmp_path: Path) -> None:
    src = write_nct(tmp_path / "NCT-CRC-HE-100K", nct.TISSUES)
    out = tmp_path / ("tiles.csv" if inside else "elsewhere/tiles.csv")
    notes = nct.list_tiles(src, out)
    assert notes[0] == "18 tiles: ADI 2, BACK 2, DEB 2, LYM 2, MUC 2, MUS 2, NORM 2, STR 2, TUM 2"
    assert notes[1].startswith("not all of a release?")
    assert out.read_text().splitlines()[1].startswith("/") is not inside
    index = Index.build(out, tmp_path / "index.arrow")
    assert sorted(index.name(n) for n in range(len(index))) == sorted(map(str, src.glob("*/*.tif")))
    assert set(index.mpp.tolist()) == {0.5}
    assert {Path(source).name for source in index.sources} == set(nct.TISSUES)
    assert index.read(0).shape == (3, 8, 8)


def test_a_table_may_lie_among_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nct(tmp_path / "tiles", nct.TISSUES)
    monkeypatch.chdir(tmp_path / "tiles")
    nct.list_tiles(Path(), Path("all.csv"))
    assert len(Index.build("all.csv", tmp_path / "index.arrow")) == 18


def test_nothing_to_note_of_a_whole_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nct, "RELEASES", (18,))
    notes = nct.list_tiles(write_nct(tmp_path / "CRC-VAL-HE-7K", nct.TISSUES), tmp_path / "val.csv")
    assert len(notes) == 2 and notes[1].startswith("the tiles of CRC-VAL-HE-7K are of other patients")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    src = write_nct(tmp_path / "src", nct.TISSUES)
    with pytest.raises(UserError, match=r"out would hold a table, .*: give OUT a name ending in \.csv"):
        nct.list_tiles(src, tmp_path / "out")
    (src / "MUS").rename(src / "muscle")
    with pytest.raises(UserError, match=r"src has no folder MUS: give the folder"):
        nct.list_tiles(src, tmp_path / "out.csv")
    (src / "MUS").mkdir()
    with pytest.raises(UserError, match=r"src/MUS holds no tiles: unpack the release again"):
        nct.list_tiles(src, tmp_path / "out.csv")
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(UserError, match=r"out.csv exists .*: choose another OUT"):
        nct.list_tiles(src, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"
