"""Everything in one go, by the command line: slides, tiles, a backbone, a segmenter, and its glands on a new slide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from colocate.base.shapes import rasterise
from colocate.cli.main import main
from colocate.data.phantom import phantom_tile
from tests.phantom_slide import tissue_slide, write_pyramid, write_slides

MPP = 1.0
TINY = ["--accelerator", "cpu", "--workers", "0"]


def write_labelled(folder: Path) -> Path:
    """Tiles with their glands, of other slides than those that are predicted."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = ["path,source,mpp"]
    for number in range(20):
        tile = phantom_tile(7, number, 192, MPP)
        Image.fromarray(tile.image).save(folder / "images" / f"{number:02}.png")
        Image.fromarray((tile.glands > 0).astype(np.uint8)).save(folder / "masks" / f"{number:02}.png")
        lines.append(f"{number:02}.png,case{number // 4},{MPP}")
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_from_slides_to_objects_on_a_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_slides(tmp_path / "slides", 3, 1024, MPP)
    tiles, run, data, results, out = (tmp_path / name for name in ("tiles", "run", "data", "results", "out"))
    main(["tile", str(tmp_path / "slides"), str(tiles), "--mpp", str(MPP), "--size", "128"])
    words = ["pretrain", "plm-small", "--data", str(tiles), "--out", str(run), "--backbone", "test_resnet", *TINY]
    words += ["--views.size", "64", "--batch", "8", "--steps", "4", "--method.norm-group", "4", "--journals"]
    main([*words, "--hold-out", "slide=s2", "--balance", "sources"])
    assert not [line for line in (run / "tiles.arrow").read_bytes().split(b"\0") if b"s2/" in line]

    labelled = write_labelled(tmp_path / "labelled")
    main(["prepare", "folder", str(labelled), str(data), "--semantics", "--classes", "other", "gland"])
    words = ["evaluate", "semantics", "--smoke", "--data", str(data), "--backbone", str(run), "--seeds", "1", *TINY]
    main([*words, "--out", str(results), "--keep-models", "--fit.steps", "60"])

    pixels, glands = tissue_slide(1024, MPP, seed=11)
    slide = write_pyramid(tmp_path / "new" / "new.tif", pixels, MPP)
    main(["predict", str(results), str(slide), "--out", str(out), "--window", "256", *TINY])
    found = json.loads((out / "new.geojson").read_text())["features"]
    own = [feature for feature in found if feature["properties"]["classification"]["name"] == "gland"]
    shapes = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in own]
    patch = rasterise(shapely.union_all(shapes), 1024, 1024)
    mask = np.zeros((1024, 1024), bool)
    mask[patch.place] = patch.mask
    truth = glands > 0
    middle = np.s_[256:768, 256:768]  # all tissue: what lies outside would flatter
    overlap = (mask & truth)[middle].sum() / (mask | truth)[middle].sum()
    p, q = mask[middle].mean(), truth[middle].mean()
    chance = p * q / (p + q - p * q)  # as many pixels strewn at random
    assert overlap > 1.5 * chance
