"""Results that another process makes anew while they are looked at: the new ones are shown, and read once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import shapely

from colocate.prediction.outputs import Outlined
from colocate.viewer import outlines
from tests.phantom_slide import painted, write_pyramid
from tests.viewer.conftest import World, blobs, client_of, decoded, predict_blobs


def test_predictions_are_those_on_the_disk_and_read_once(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    reads: list[Path] = []
    read = outlines.read_table
    monkeypatch.setattr(outlines, "read_table", lambda file, *more: reads.append(file) or read(file, *more))
    counts = []
    client = client_of([world.slides, predict_blobs(world.listed, tmp_path, blobs(9, 1300, 1101))])
    for found in (blobs(9, 1300, 1101), blobs(5, 1300, 1101), [Outlined(shapely.box(600, 500, 700, 600), 1, 0.9)]):
        predict_blobs(world.listed, tmp_path, found)
        for _ in range(3):
            told = client.get("/api/slides/0/predictions/0").json()
            client.get("/api/slides/0/predictions/0/0/0_0?classes=0,1&score=0")
            counts.append(sum(one["count"] for one in told["classes"]))
    assert counts == [9, 9, 9, 5, 5, 5, 1, 1, 1] and len(reads) == 3
    assert client.get("/api/slides/0/predictions/0/at?x=650&y=550&scale=1&classes=0&score=0").json()["number"] == 0


def test_features_are_those_on_the_disk(world: World, tmp_path: Path) -> None:
    path = tmp_path / "phantom.h5"
    shutil.copy(world.features / "phantom.h5", path)
    client = client_of([world.slides, path])
    with h5py.File(path) as file:
        features: np.ndarray = file["features"][:]  # type: ignore[index]
    asked = "/api/slides/0/similar/0/at?x={}&y={}".format(*h5py.File(path)["coords"][0])  # type: ignore[index]
    before = client.get(asked).json()
    assert before == client.get(asked).json() and before["cell"] == 0
    with h5py.File(path, "r+") as file:
        file["features"][:] = features[::-1] ** 2  # type: ignore[index]
    assert client.get(asked).json()["low"] != before["low"]
    with h5py.File(path, "r+") as file:
        file["features"].attrs["backbone"] = "another"
    assert client.get("/api/slides/0/similar/0").json()["backbone"] == "another"


def test_tissue_is_that_of_the_mask_on_the_disk(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "slide.tif", painted(400, 300), 1.0, 1)
    (tmp_path / "slides.csv").write_text("path,mask\nslide.tif,mask.geojson\n")

    def outline(*box: float) -> None:
        geometry = shapely.geometry.mapping(shapely.box(*box))
        (tmp_path / "mask.geojson").write_text(json.dumps({"type": "Feature", "geometry": geometry}))

    outline(0, 0, 200, 300)
    client = client_of([tmp_path / "slides.csv"])

    def shaded() -> list[bool]:
        drawn = decoded(client.get("/api/slides/0/tissue/0/0_0"))
        return [bool(drawn[150, x, 3] > 0) for x in (100, 300)]

    assert shaded() == [False, True]
    outline(200, 0, 400, 300.0)
    assert shaded() == [True, False]
    (tmp_path / "mask.geojson").unlink()
    assert client.get("/api/slides/0/tissue/0/0_0").status_code == 422
    write_pyramid(tmp_path / "slide.tif", 255 - painted(400, 300), 1.0, 1)
    shown = decoded(client.get("/api/slides/0/pixels/0/0_0")).astype(int)
    assert np.abs(shown - (255 - painted(400, 300))).mean() < 5
