"""Similarity of features against plain loops, and the heat map square by square."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from starlette.testclient import TestClient

from colocate.viewer import similar
from colocate.viewer.pyramid import Region
from colocate.viewer.similar import COLOURS, draw_similarity, lattice, similarity
from tests.viewer.conftest import World, decoded


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


@pytest.fixture(scope="module")
def stored(world: World) -> tuple[Path, list[list[float]], list[list[int]]]:
    path = world.features / "phantom.h5"
    with h5py.File(path) as file:
        return path, file["features"][:].tolist(), file["coords"][:].tolist()  # type: ignore[index]


def test_every_cosine_is_that_of_a_plain_loop(
    stored: tuple[Path, list[list[float]], list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, features, _ = stored
    monkeypatch.setattr(similar, "ROWS", 7)  # blocks that do not come out even
    for number in (0, 3, len(features) - 1):
        found = similarity(path, number)
        plain = [cosine(features[number], other) for other in features]
        assert found.cosines.tolist() == pytest.approx(plain, abs=1e-5)
        assert number not in found.best
        others = sorted(plain[:number] + plain[number + 1 :], reverse=True)
        assert [plain[one] for one in found.best] == pytest.approx(others[: len(found.best)], abs=1e-5)
    with pytest.raises(LookupError):
        similarity(path, len(features))


def test_a_click_finds_the_cell_that_lies_there(
    client: TestClient, stored: tuple[Path, list[list[float]], list[list[int]]]
) -> None:
    _, features, coords = stored
    facts = client.get("/api/slides/0/similar/0").json()
    assert (facts["count"], facts["of"]) == (len(features), "cells")
    for number, (x, y) in list(enumerate(coords))[:: len(coords) // 9]:
        told = client.get(f"/api/slides/0/similar/0/at?x={x + 5}&y={y + 11}").json()
        assert told["cell"] == number and told["square"] == [x, y, x + 16, y + 16]
    assert client.get("/api/slides/0/similar/0/at?x=1&y=1").json() is None
    assert client.get("/api/slides/0/similar/0/at?x=-5&y=-5").json() is None


@pytest.mark.parametrize(
    "place", [Region(400, 300, 90, 70, 1), Region(0, 0, 163, 138, 8), Region(390, 390, 60, 60, 0.5)]
)
def test_every_pixel_has_the_colour_of_its_cell(
    place: Region, stored: tuple[Path, list[list[float]], list[list[int]]]
) -> None:
    path, _, coords = stored
    found, where = similarity(path, 5), lattice(path)
    drawn = draw_similarity(where, found, place)
    seen = 0
    for row in range(0, place.height, 5):
        for col in range(0, place.width, 5):
            x, y = place.x + (col + 0.5) * place.scale, place.y + (row + 0.5) * place.scale
            here = [n for n, (left, top) in enumerate(coords) if 0 <= x - left < 16 and 0 <= y - top < 16]
            assert (drawn[row, col, 3] > 0) == bool(here)
            if here:
                share = (float(found.cosines[here[0]]) - found.low) / (1 - found.low)
                colour = COLOURS[min(max(round(255 * share), 0), 255)].astype(int)
                assert np.abs(drawn[row, col, :3] - colour).max() <= 4  # the next of 256, where a half is rounded
                seen += 1
    assert seen > 10


def test_the_heat_map_is_served(client: TestClient) -> None:
    drawn = decoded(client.get("/api/slides/0/similar/0/5/0/0_0"))
    assert drawn.shape[2] == 4 and 0 < (drawn[..., 3] > 0).mean() < 0.5
