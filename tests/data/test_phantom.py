"""The phantom: a pure function, sound instances, and colours that a stained section could have."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from colocate.data.phantom import STAINS, PhantomTile, phantom_tile, write_phantom


@pytest.fixture(scope="module")
def tiles() -> list[PhantomTile]:
    return [phantom_tile(7, index, 128, 1.8) for index in range(0, 250, 10)]


def density(image: np.ndarray) -> np.ndarray:
    return -np.log((image.astype(float) + 1) / 256)


def same(a: PhantomTile, b: PhantomTile) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("image", "glands", "nuclei"))


def test_a_tile_depends_on_its_arguments_alone() -> None:
    forward = [phantom_tile(1, index, 64, 2.0) for index in range(10)]
    np.random.seed(0)  # noqa: NPY002 - the global generator must not matter
    backward = [phantom_tile(1, index, 64, 2.0) for index in reversed(range(10))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))


def test_seeds_indices_and_slides_differ() -> None:
    tiles = [phantom_tile(seed, index, 64, 2.0) for seed in range(3) for index in (0, 1, 8, 9)]
    assert not any(same(a, b) for i, a in enumerate(tiles) for b in tiles[:i])


@pytest.mark.parametrize(("size", "mpp"), [(224, 1.0), (128, 2.0), (96, 0.5), (64, 4.0), (9, 0.25), (1, 1.0)])
def test_shapes_types_and_contiguous_ids(size: int, mpp: float) -> None:
    tile = phantom_tile(0, 3, size, mpp)
    assert tile.image.shape == (size, size, 3) and tile.image.dtype == np.uint8
    for ids in (tile.glands, tile.nuclei):
        assert ids.shape == (size, size) and ids.dtype == np.int32
        assert set(np.unique(ids)) - {0} == set(range(1, ids.max() + 1))


@pytest.mark.slow
def test_mpp_scales_geometry() -> None:
    """Glands are 60-140 um across at any resolution (by the area of those that the border does not cut)."""
    for size, mpp in ((448, 1.0), (224, 2.0)):
        across = []
        for index in range(0, 48, 8):
            glands = phantom_tile(2, index, size, mpp).glands
            cut = np.unique(np.concatenate((glands[0], glands[-1], glands[:, 0], glands[:, -1])))
            area = np.bincount(glands.reshape(-1)) * mpp**2
            across += [2 * np.sqrt(area[i] / np.pi) for i in range(1, len(area)) if i not in cut]
        assert len(across) > 30
        assert 60 < np.median(across) < 140
        assert np.mean([50 < a < 160 for a in across]) > 0.95


@pytest.mark.slow
def test_gland_fraction_and_count(tiles: list[PhantomTile]) -> None:
    fraction = np.array([(tile.glands > 0).mean() for tile in tiles])
    assert 0.4 < fraction.mean() < 0.75
    assert fraction.min() > 0.1 and fraction.max() < 0.95
    assert all(3 <= tile.glands.max() <= 30 and tile.nuclei.max() > 100 for tile in tiles)


def test_glands_are_connected_and_apart(tiles: list[PhantomTile]) -> None:
    """Star-shaped: only a tile's border can cut one in two. Apart: hardly a pixel touches another gland."""
    whole, touching = [], []
    for tile in tiles[::2]:
        for gland in range(1, tile.glands.max() + 1):
            parts = np.bincount(label(tile.glands == gland)[tile.glands == gland])
            whole.append(parts.max() / parts.sum())
        left, right = tile.glands[:, :-1], tile.glands[:, 1:]
        touching.append(((left != right) & (left > 0) & (right > 0)).mean())
    assert np.mean(np.array(whole) > 0.98) > 0.95
    assert np.mean(touching) < 0.002


def test_nuclei_are_darker_than_stroma_and_glands_hold_many(tiles: list[PhantomTile]) -> None:
    for tile in tiles:
        od = density(tile.image).sum(-1)
        nuclei, glands = tile.nuclei > 0, tile.glands > 0
        assert od[nuclei].mean() > 1.4 * od[~nuclei & ~glands].mean()
        assert nuclei[glands].mean() > 0.08


def test_glands_and_stroma_overlap_in_mean_colour(tiles: list[PhantomTile]) -> None:
    """Structure tells them apart, not colour: no threshold on a tile's darkness finds the glands."""
    hits = []
    for tile in tiles:
        od, glands = density(tile.image).sum(-1), tile.glands > 0
        above = od > np.median(od)
        hits.append(max((above == glands).mean(), (above != glands).mean()))
    assert np.mean(hits) < 0.65


def test_colour_is_that_of_a_stained_section(tiles: list[PhantomTile]) -> None:
    means = np.array([tile.image.reshape(-1, 3).mean(0) for tile in tiles])
    assert (means[:, 1] < means[:, 0]).all() and (means[:, 1] < means[:, 2]).all()  # pink to purple
    assert ((means > 70) & (means < 245)).all()
    assert (means.std(0) > 3).all()  # slides vary
    # Beer-Lambert: a stain only absorbs. The lamp is at most 0.99 of full scale; the rest is sensor noise.
    assert np.mean([(tile.image > 253).mean() for tile in tiles]) < 0.005
    # Two stains span the densities: little is left outside the plane of the published vectors.
    od = np.concatenate([density(tile.image).reshape(-1, 3) for tile in tiles[::3]])
    normal = np.cross(*STAINS)
    assert np.abs(od @ normal / np.linalg.norm(normal)).mean() < 0.3 * np.linalg.norm(od, axis=1).mean()


@pytest.mark.slow
def test_tiles_of_a_slide_share_their_stain() -> None:
    means = np.array([[phantom_tile(4, 8 * s + i, 64, 2.0).image.mean((0, 1)) for i in range(4)] for s in range(6)])
    assert means.mean(1).std(0).sum() > means.std(1).mean(0).sum()


def test_mean_colour_lies_within_real_tissue(tiles: list[PhantomTile], shared_data: Path) -> None:
    paths = sorted((shared_data / "ebhi-seg").glob("*/image/*.jpg"))[::40]
    real = np.array([np.asarray(Image.open(path).convert("RGB")).mean((0, 1)) for path in paths])
    phantom = np.array([tile.image.mean((0, 1)) for tile in tiles])
    assert np.abs(phantom.mean(0) - real.mean(0)).max() < 70
    assert np.array_equal(np.argsort(phantom.mean(0)), np.argsort(real.mean(0)))  # green < red < blue


def test_written_tiles_read_back(tmp_path: Path) -> None:
    write_phantom(tmp_path / "phantom", 10, seed=5, size=48, mpp=2.0)
    with (tmp_path / "phantom/tiles.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert rows[9] == {"path": "images/slide01/0009.png", "source": "slide01", "mpp": "2.0"}
    for index, row in enumerate(rows):
        tile = phantom_tile(5, index, 48, 2.0)
        image = tmp_path / "phantom" / row["path"]
        assert np.array_equal(np.asarray(Image.open(image)), tile.image)
        mask = Image.open(tmp_path / "phantom" / row["path"].replace("images", "glands"))
        assert mask.mode.startswith("I;16")
        assert np.array_equal(np.asarray(mask), tile.glands)
