"""The views that are shown are those of training; shares and similarities against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from starlette.testclient import TestClient

from colocate.base.errors import UserError
from colocate.core.geometry import Crop
from colocate.core.views import sample_views
from colocate.data.index import Index
from colocate.models.backbones import load_backbone
from colocate.pages.matches import crop_corners
from colocate.training.recipe import read_recipe
from colocate.viewer.pairs import Pair, pair, read_run
from tests.viewer.conftest import World, decoded

CHOSEN = [(0, 0), (12, 1), (19, 0)]


@pytest.fixture(scope="module", params=CHOSEN)
def drawn(request: pytest.FixtureRequest, world: World) -> Pair:
    return pair(world.run, *request.param)


def tissue(crop: Crop, grid: tuple[int, int], cell: int) -> shapely.Polygon:
    """A cell's tissue on the tile: a point of the view lies as far along it as between the crop's signed ends."""
    row, col = divmod(cell, grid[1])
    points = []
    for v, u in ((row, col), (row, col + 1), (row + 1, col + 1), (row + 1, col)):
        down, across = v / grid[0], u / grid[1]
        if crop.transpose[0]:
            down, across = across, down
        (top, bottom), (left, right) = crop.rows[0].tolist(), crop.cols[0].tolist()
        points.append((left + across * (right - left), top + down * (bottom - top)))
    return shapely.Polygon(points)


def test_shares_are_those_of_the_cells_areas(drawn: Pair) -> None:
    grid = drawn.run.grid
    cells = [[tissue(view.crop, grid, cell) for cell in range(grid[0] * grid[1])] for view in drawn.views]
    shared = 0
    for view in (0, 1):
        for number, own in enumerate(cells[view]):
            told = drawn.cell(view, number)
            shares = [own.intersection(other).area / own.area for other in cells[1 - view]]
            assert dict(told["shares"]) == pytest.approx({n: s for n, s in enumerate(shares) if s > 1e-12}, abs=1e-6)
            assert told["seen"] == pytest.approx(sum(shares), abs=1e-6)
            top, left, bottom, right = told["tissue"]
            assert (left, top, right, bottom) == pytest.approx(own.bounds)
            shared += len(told["shares"])
    assert shared > 0


def test_corners_are_where_the_views_have_theirs(drawn: Pair) -> None:
    high, wide = drawn.run.grid
    for view in drawn.views:
        corners = crop_corners(view.crop)
        for place, cell in enumerate([0, wide - 1, high * wide - 1, (high - 1) * wide]):
            x, y = list(tissue(view.crop, (high, wide), cell).exterior.coords)[place]
            assert corners[place] == pytest.approx([x, y])


def test_similarity_is_that_of_the_runs_backbone(drawn: Pair, world: World) -> None:
    backbone = load_backbone(world.run)
    with torch.no_grad():
        cells = [backbone(view.images)[0].flatten(1).T.double().numpy() for view in drawn.views]
    for view, number in ((0, 0), (1, 2), (0, 3)):
        one = cells[view][number]
        told = drawn.cell(view, number)["similar"]
        for other in (0, 1):
            plain = [one @ two / np.linalg.norm(one) / np.linalg.norm(two) for two in cells[other]]
            assert told[other] == pytest.approx(plain, abs=1e-4)
        assert told[view][number] == pytest.approx(1)


@pytest.mark.parametrize("epoch", [0, 1])
def test_views_are_those_that_training_draws_of_a_batch(world: World, epoch: int) -> None:
    recipe, index = read_recipe(world.run / "recipe.json"), Index.open(world.run / "tiles.arrow")
    numbers = torch.tensor([4, 0, 19, 7])
    tiles = torch.stack([index.read(number) for number in numbers.tolist()])
    batch = sample_views(tiles, recipe.views, seed=recipe.seed, epoch=epoch, index=numbers)
    for place, number in enumerate(numbers.tolist()):
        found = pair(world.run, number, epoch)
        for view, trained in zip(found.views, (batch.first, batch.second), strict=True):
            assert torch.allclose(view.images[0], trained.images[place], atol=1e-5)
            assert torch.equal(view.crop.rows[0], trained.crop.rows[place])


def test_the_server_tells_the_same(client: TestClient, world: World) -> None:
    facts = client.get("/api/runs/0").json()
    run = read_run(world.run)
    assert (facts["tiles"], facts["epochs"], tuple(facts["grid"])) == (20, run.epochs, run.grid)
    first = client.get("/api/runs/0/tiles/3").json()["epoch"]
    assert 0 <= first < run.epochs
    base = f"/api/runs/0/tiles/3/{first}"
    own = pair(world.run, 3, first)
    said = client.get(base).json()
    assert (said["width"], said["height"], said["view"], said["name"]) == (80, 80, 64, "03.png")
    assert said["seen"] == [match.seen[0].tolist() for match in own.matches]
    for what in (0, 1, 2):
        assert np.array_equal(decoded(client.get(f"{base}/picture/{what}")), own.picture(what))
    told, mine = client.get(f"{base}/cell/1/2").json(), own.cell(1, 2)
    assert told["shares"] == [list(share) for share in mine["shares"]] and told["similar"] == mine["similar"]


def test_tiles_that_are_gone_are_a_sentence(client: TestClient, world: World) -> None:
    picture = world.run.parent / "pictures" / "11.png"
    content = picture.read_bytes()
    picture.unlink()
    try:
        answer = client.get("/api/runs/0/tiles/11")
        assert answer.status_code == 422 and "11.png does not exist" in answer.json()["error"]
    finally:
        picture.write_bytes(content)


def test_a_run_without_a_backbone_says_how_to_get_one(world: World, tmp_path: Path) -> None:
    for name in ("recipe.json", "journal.csv", "tiles.arrow"):
        (tmp_path / name).write_bytes((world.run / name).read_bytes())
    with pytest.raises(UserError, match=r"no backbone yet.*--resume"):
        read_run(tmp_path)
