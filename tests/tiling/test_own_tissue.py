"""A function of the user's own that finds tissue: used, recorded, and refused where it gives no mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from colocate.base.errors import UserError
from colocate.slides.listing import find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import tile
from colocate.slides.tissue import find_tissue
from tests.phantom_slide import painted, tissue_slide, write_pyramid

CODE = "import numpy as np\n\ndef {name}(image, mpp):\n    {body}\n"
LEFT = "mask = np.zeros(image.shape[:2], bool)\n    mask[:, : round(400 / mpp)] = True\n    return mask"


def write(path: Path, body: str = LEFT, name: str = "left") -> str:
    path.write_text(CODE.format(name=name, body=body))
    return f"{path}:{name}"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", tissue_slide(640, 1.0, 0)[0], mpp=1.0)


CONFIG = TilingConfig(mpp=2.0, size=50, min_sharpness=0)


def test_tiles_lie_where_it_says_and_another_needs_another_out(slide: Path, tmp_path: Path) -> None:
    """It is told the picture's resolution: the left 400 micrometres, of 640.

    Another is one of another name, one that was changed since, or none: the tiles would be of two kinds.
    """
    name, out = write(tmp_path / "own.py"), tmp_path / "out"
    tile(find_slides([slide]), out, CONFIG, tissue=name)
    rows = parquet.read_table(out / "manifest.parquet").to_pylist()
    assert {row["x"] for row in rows} == {0, 100, 200, 300} and len(rows) == 4 * 6
    stored = json.loads((out / "tiling.json").read_text())
    assert stored["tissue"] == name and len(stored["tissue_sha256"]) == 64
    tile(find_slides([slide]), out, CONFIG, tissue=name)
    for other in (write(tmp_path / "other.py"), None):
        with pytest.raises(UserError, match=r"holds tiles of other settings .*tissue .*choose another OUT"):
            tile(find_slides([slide]), out, CONFIG, tissue=other)
    write(tmp_path / "own.py", LEFT.replace("400", "300"))
    with pytest.raises(UserError, match=r"other settings .*tissue_sha256"):
        tile(find_slides([slide]), out, CONFIG, tissue=name)


NO_MASK: dict[str, Any] = {
    r"uint8 \(50, 100, 3\)": lambda image, mpp: image,
    r"uint8 \(50, 100\)": lambda image, mpp: image[:, :, 0],
    r"bool \(5, 5\)": lambda image, mpp: np.ones((5, 5), bool),
    r"bool \(100, 50\)": lambda image, mpp: image[:, :, 0].T > 0,
    "NoneType": lambda image, mpp: None,
    "list": lambda image, mpp: (image[:, :, 0] > 0).tolist(),
}


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", painted(100, 50), mpp=8.0)
    told = "for the tissue of .*slide.tif: return a NumPy array of bool"
    for said, find in NO_MASK.items():
        with pytest.raises(UserError, match=f"lambda> gave {said} {told}"):
            find_tissue(Slide.open(path), find=find)
    with pytest.raises(UserError, match=f"left gave NoneType {told}"):
        tile(find_slides([path]), tmp_path / "out", tissue=write(tmp_path / "own.py", "return None"))


def test_an_error_of_its_own_sets_the_slide_aside(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 1 slide could be cut"):
        tile(find_slides([slide]), tmp_path / "out", tissue=write(tmp_path / "own.py", "return image[0, 0, 7]"))
    assert "IndexError" in (tmp_path / "out" / "failed.csv").read_text()


def test_a_name_that_is_no_function(slide: Path, tmp_path: Path) -> None:
    write(tmp_path / "own.py")
    with pytest.raises(UserError, match=r"own\.py:np is not a function"):
        tile(find_slides([slide]), tmp_path / "out", tissue=f"{tmp_path}/own.py:np")


def test_in_python_and_behind_a_mask(slide: Path, tmp_path: Path) -> None:
    """The mask that a table names counts before it."""
    nothing = find_tissue(Slide.open(slide), find=lambda image, mpp: np.zeros(image.shape[:2], bool))
    assert not nothing.mask.any()
    (tmp_path / "own.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[0, 0], [640, 0], [640, 640], [0, 640], [0, 0]]]}'
    )
    masked = find_tissue(Slide.open(slide), tmp_path / "own.geojson", lambda image, mpp: image)
    assert masked.mask.all()
