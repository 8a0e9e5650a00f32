"""Folders of small images of every kind; every other kind of source is made from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from colocate.data.index import Index
from tests.data.pictures import TILES, packed, picture


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A folder of mixed tiles, and of files that are none."""
    folder = tmp_path / "tiles"
    for seed, (name, (width, height)) in enumerate(TILES.items()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(packed(picture(seed, width, height), file.suffix[1:].lower()))
    for other in ("notes.txt", ".hidden.jpg", "a/._0.png", ".cache/thumb.png"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"not a tile")
    return folder


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 20 tiles of three sizes; number 4, 5 and 19 cannot be read."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(20):
        image = picture(number, 8 + number % 3, 8)
        (folder / f"{number:02}.png").write_bytes(packed(image, "png"))
    for number in (4, 5, 19):
        (folder / f"{number:02}.png").write_text("not an image")
    return folder


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Index]:
    def build(data: Path | str, **options: object) -> Index:
        return Index.build(data, tmp_path / "out" / "index.arrow", **options)  # type: ignore[arg-type]

    return build
