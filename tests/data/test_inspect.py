"""What inspect says is what numpy says of the same files."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.data.inspect import Summary, inspect, show
from colocate.data.loader import tile_loader
from tests.data.pictures import TILES, packed, picture

Build = Callable[..., Index]


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Summary]:
    def look(data: Path, **options: object) -> Summary:
        return inspect(data, **{"out": tmp_path / "sheet.png", **options})  # type: ignore[arg-type]

    return look


def test_counts_and_colours_of_all_pixels(tiles: Path, build: Build, look: Callable[..., Summary]) -> None:
    summary = look(tiles, mpp=0.5)
    assert (summary.tiles, summary.opened) == (7, 7)
    assert summary.sources == {".": 1, "a": 4, "b c": 1, "b c/deep": 1}
    assert summary.formats == {"JPEG": 3, "PNG": 1, "TIFF": 1, "BMP": 1, "WEBP": 1}
    assert set(summary.sizes) == {(high, wide) for wide, high in TILES.values()}
    assert set(summary.sizes.values()) == {1}
    assert summary.mpp == {0.5: 7}
    assert summary.duplicates == []
    assert summary.unreadable == {}
    index = build(tiles)
    pixels = np.concatenate([index.read(i).reshape(3, -1).numpy() for i in range(7)], 1) / 255
    np.testing.assert_allclose(summary.mean, pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(summary.std, pixels.std(1), rtol=1e-12)


def test_duplicates_and_unreadable_files(many: Path, look: Callable[..., Summary]) -> None:
    shutil.copy(many / "00.png", many / "z.png")
    shutil.copy(many / "00.png", many / "y.png")
    shutil.copy(many / "07.png", many / "x.png")
    summary = look(many)
    assert summary.duplicates == [
        [str(many / name) for name in group] for group in (["00.png", "y.png", "z.png"], ["07.png", "x.png"])
    ]
    assert [Path(name).name for name in summary.unreadable] == ["04.png", "05.png", "19.png"]
    assert all(reason.startswith(f"{name} is no JPEG") for name, reason in summary.unreadable.items())
    assert sum(summary.formats.values()) == 20


def test_sample_is_spread_evenly(many: Path, look: Callable[..., Summary]) -> None:
    summary = look(many, sample=3)
    assert (summary.tiles, summary.opened) == (20, 3)
    assert list(look(many, sample=4).sizes) != list(look(many, sample=1).sizes)
    assert look(many, sample=500).opened == 20
    with pytest.raises(UserError, match="give --sample 1 or more"):
        look(many, sample=0)


def test_contact_sheet_is_the_same_each_time(many: Path, look: Callable[..., Summary], tmp_path: Path) -> None:
    assert look(many).contact_sheet == tmp_path / "sheet.png"
    first = (tmp_path / "sheet.png").read_bytes()
    assert look(many, out=str(tmp_path / "again.png")).contact_sheet == tmp_path / "again.png"
    assert (tmp_path / "again.png").read_bytes() == first
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.convert("RGB").getcolors(1 << 20) or []) > 20
    with pytest.raises(UserError, match=r"contact sheet .*cannot be written .*: choose another place"):
        look(many, out=tmp_path / "no" / "sheet.png")


def test_a_sheet_beside_a_shard_is_no_tile(many: Path, look: Callable[..., Summary], tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "one.tar", "w") as shard:
        shard.add(next(many.rglob("*.png")), "one.png")
    with pytest.raises(UserError, match="one more tile"):
        inspect(tmp_path / "shards", out=tmp_path / "shards" / "sheet.png")
    assert inspect(tmp_path / "shards" / "one.tar", out=tmp_path / "shards" / "sheet.png").contact_sheet is not None


def test_a_sheet_among_the_tiles_would_be_one(many: Path) -> None:
    with pytest.raises(UserError, match=r"sheet\.png lies in .*, where it would be one more tile: choose another"):
        inspect(many, out=many / "sheet.png")


def test_shown_names_are_taken_literally(
    many: Path, look: Callable[..., Summary], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(many / "00.png", many / "[bold]x.png")
    show(look(many))
    text = capsys.readouterr().out
    assert "[bold]x.png" in "".join(text.split())
    for words in ("21", "PNG (18)", "1 more copies of 1 files", "is no JPEG", "smallest 8 x 8"):
        assert words in " ".join(text.split())


def test_without_a_place_no_sheet_is_drawn(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert inspect(many).contact_sheet is None
    assert not any((tmp_path / "here").iterdir())


def test_masks_among_tiles_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number, values in enumerate((256, 256, 3, 2)):
        pixels = rng.integers(0, values, (16, 16) + (3,) * (values == 256)).astype(np.uint8)
        picture = Image.fromarray(pixels)
        if number == 3:  # numbers of colours in a palette
            picture.putpalette([200, 0, 0, 0, 0, 200])
        picture.save(tmp_path / f"{number}.png")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "glass.png")
    summary = inspect(tmp_path)
    assert (summary.labels, summary.opened) == (2, 5)
    show(summary)
    assert "2 of 5 tiles hold 32 values or fewer, as masks of labels do" in " ".join(capsys.readouterr().out.split())


def test_nothing_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "words.jpg").write_text("words")
    summary = inspect(tmp_path / "tiles", out=tmp_path / "sheet.png")
    assert summary.contact_sheet is None
    assert not (tmp_path / "sheet.png").exists()
    show(summary)
    assert "no tile could be read" in capsys.readouterr().out


def test_real_folder(shared_data: Path, look: Callable[..., Summary], tmp_path: Path) -> None:
    summary = look(shared_data / "ebhi-seg" / "Normal")
    assert summary.formats.keys() == {"JPEG", "PNG"}
    assert list(summary.sizes) == [(224, 224)]
    assert summary.unreadable == {}
    assert (tmp_path / "sheet.png").stat().st_size < 300_000


def test_real_tiles_load(shared_data: Path, build: Build) -> None:
    index = build(shared_data / "lc25000-colon", mpp=0.5)
    assert (len(index), index.sources) == (1981, ["colon_aca", "colon_n"])
    alone = next(iter(tile_loader(index, batch=16, seed=0, start=5, stop=7, workers=0)))
    helped = next(iter(tile_loader(index, batch=16, seed=0, start=5, stop=7, workers=2)))
    assert alone.images.shape == (16, 3, 224, 224)
    assert alone.skipped == ()
    assert (alone.images == helped.images).all()


def test_duplicates_are_found_however_far_apart(tmp_path: Path, look: Callable[..., Summary]) -> None:
    copies = [tmp_path / "copies" / f"{number:03}.png" for number in range(70)]
    copies[0].parent.mkdir()
    for copy in copies:
        copy.write_bytes(packed(picture(0, 8, 8), "png"))
    assert look(copies[0].parent).duplicates == [[str(copy) for copy in copies]]
