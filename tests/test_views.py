"""Views against torchvision's chain with the same parameters, and the promises that training rests on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colocate.base.errors import UserError
from colocate.core.matching import overlap
from colocate.core.settings import IMAGENET_MEAN, IMAGENET_STD, ViewConfig
from colocate.core.views import AugmentParams, render, sample_params, sample_views
from tests.reference.views import view_of

STEP = 1 / 255
RAW = ViewConfig(size=48, mean=(0, 0, 0), std=(1, 1, 1), symmetries="all")
PLAIN = replace(RAW, jitter_p=0, grey_p=0, blur_p=0)


def _tiles(b: int, height: int = 96, width: int = 96, seed: int = 0, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (b, 3, height, width), generator=generator, dtype=torch.uint8)


def _sizes(tiles: Tensor) -> Tensor:
    return torch.tensor(tiles.shape[2:]).expand(len(tiles), 2)


def _draw(config: ViewConfig, tiles: Tensor, *key: int) -> AugmentParams:
    return sample_params(config, _sizes(tiles), torch.arange(len(tiles)), *(key or (0, 0, 0)))


# Pixels against torchvision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 48, 130])
def test_crops_flips_and_turns_are_torchvisions(size: int) -> None:
    config, tiles = replace(PLAIN, size=size), _tiles(64, 60, 80)
    looks = _draw(config, tiles)
    view = render(tiles, looks, config)
    for i in range(len(tiles)):
        assert (view.images[i] - view_of(tiles[i], looks, i, size)).abs().max() < 1e-3
    assert len({(r[0] > r[1], c[0] > c[1], t) for r, c, t in zip(*(x.tolist() for x in looks.crop), strict=True)}) == 8


def test_colours_and_blur_are_torchvisions() -> None:
    """All steps but hue, on tiles of middling contrast where no clamp hits; blur away from the edges it reflects at."""
    config = replace(RAW, jitter=(0.2, 0.4, 0.4, 0.0), blur_px=(0.3, 1.5))
    # Smooth tiles: a Gaussian sampled at whole pixels, as torchvision's is, and a continuous one differ on noise.
    tiles = (
        F.interpolate(_tiles(32, 12, 12, low=80, high=150).float(), (96, 96), mode="bicubic").round().to(torch.uint8)
    )
    looks = _draw(config, tiles)
    assert bool((looks.sigma_px > 0).any()) and bool(looks.grey.any()) and bool((looks.factors != 1).any())
    view = render(tiles, looks, config)
    for i in range(len(tiles)):
        expected = view_of(tiles[i], looks, i, config.size)
        assert expected.min() > 0 and expected.max() < 1, "a clamp hit: the test compares nothing"
        edge = math.ceil(4 * float(looks.sigma_px[i]))
        inside = (slice(None), slice(edge, config.size - edge), slice(edge, config.size - edge))
        off = (view.images[i] - expected)[inside].abs()
        # Reflection at the edges shifts the mean that contrast takes, a little.
        assert off.max() < (2 if edge else 0.5) * STEP, (i, looks.sigma_px[i])


def test_normalising_and_one_clamp() -> None:
    config = ViewConfig(size=48, symmetries="all", jitter=(0.9, 0.9, 0.9, 0.1), jitter_p=1.0, stain=0.5, stain_p=1.0)
    raw = replace(config, mean=(0, 0, 0), std=(1, 1, 1))
    tiles = _tiles(16)
    looks = _draw(config, tiles)
    plain = render(tiles, looks, raw).images
    assert bool((plain == 0).any()) and bool((plain == 1).any()) and bool(((plain >= 0) & (plain <= 1)).all())
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(render(tiles, looks, config).images, (plain - mean) / std, atol=1e-4, rtol=0)


# Only the crop is read -------------------------------------------------------------------------------------------


def test_padding_is_never_read_or_drawn() -> None:
    """Tiles of three sizes in one batch: each gives the views that it gives alone."""
    sizes = torch.tensor([[64, 80], [100, 50], [90, 90]])
    alone = [_tiles(1, int(h), int(w), seed=int(h)) for h, w in sizes]
    padded = _tiles(3, 100, 90, seed=9)
    for i, tile in enumerate(alone):
        padded[i, :, : tile.shape[2], : tile.shape[3]] = tile[0]
    together = sample_views(padded, RAW, seed=4, index=torch.tensor([5, 6, 7]), sizes=sizes)
    for i, tile in enumerate(alone):
        single = sample_views(tile, RAW, seed=4, index=torch.tensor([5 + i]))
        for one, all_ in ((single.first, together.first), (single.second, together.second)):
            assert torch.equal(one.crop.rows[0], all_.crop.rows[i]) and torch.equal(one.crop.cols[0], all_.crop.cols[i])
            torch.testing.assert_close(one.images[0], all_.images[i], atol=1e-4, rtol=0)


@settings(max_examples=20)
@given(st.permutations(list(range(6))), st.integers(1, 6))
def test_views_do_not_depend_on_batch_or_order(order: list[int], count: int) -> None:
    tiles, index = _tiles(6, 40, 40), torch.tensor([3, 1000, 7, 0, 99_999, 4])
    config = replace(RAW, size=16, stain=0.1)
    whole = sample_views(tiles, config, seed=1, epoch=2, index=index)
    part = torch.tensor(order[:count])
    some = sample_views(tiles[part], config, seed=1, epoch=2, index=index[part])
    for mine, theirs in ((some.first, whole.first), (some.second, whole.second)):
        for a, b in zip(mine.crop, theirs.crop.select(part), strict=True):
            assert torch.equal(a, b)
        torch.testing.assert_close(mine.images, theirs.images[part], atol=1e-5, rtol=0)


def test_seed_epoch_tile_and_view_each_change_the_crop() -> None:
    tiles = _tiles(2, 224, 224)
    base = sample_views(tiles, PLAIN, seed=0, epoch=0)
    assert not torch.equal(base.first.crop.rows, base.second.crop.rows)
    assert not torch.equal(base.first.crop.rows[0], base.first.crop.rows[1])
    for change in ({"seed": 1}, {"epoch": 1}, {"index": torch.tensor([2, 3])}):
        assert not torch.equal(sample_views(tiles, PLAIN, **change).first.crop.rows, base.first.crop.rows)


# Odd tiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (20, 30), (47, 300)])
def test_tiles_smaller_than_the_view_are_enlarged(height: int, width: int) -> None:
    tiles = _tiles(8, height, width)
    batch = sample_views(tiles, replace(ViewConfig(), size=48, symmetries="all"))
    for view in (batch.first, batch.second):
        assert view.images.shape == (8, 3, 48, 48) and bool(view.images.isfinite().all())
    looks = _draw(PLAIN, tiles)
    plain = render(tiles, looks, PLAIN)
    for i in range(8):
        assert (plain.images[i] - view_of(tiles[i], looks, i, 48)).abs().max() < 1e-3


def test_stain_jitter_changes_what_it_is_drawn_for_and_nothing_else() -> None:
    tiles = _tiles(24, low=60, high=250)
    config = replace(PLAIN, stain=0.2, stain_p=0.5)
    looks = _draw(config, tiles)
    stained = (looks.stain_scale != 1).any(1)
    off = (render(tiles, looks, config).images - render(tiles, looks, PLAIN).images).abs().amax((1, 2, 3))
    assert stained.any() and not stained.all()
    assert bool((off[stained] > 0.005).all()) and bool((off[~stained] < 1e-4).all())


def test_images_are_float32_channels_last_and_crops_stay_on_the_host() -> None:
    view = sample_views(_tiles(2), RAW).first
    assert view.images.dtype == torch.float32 and view.images.is_contiguous(memory_format=torch.channels_last)
    assert view.crop.rows.device.type == "cpu" and view.crop.rows.dtype == torch.float64


@contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    """As Lightning's 64-true and bf16-true set it for each step."""
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "another state of torch's generator": nullcontext,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "64-true": lambda: default_type(torch.float64),
    "bf16-true": lambda: default_type(torch.bfloat16),
    'set_default_device("cuda")': lambda: torch.device("meta"),  # which stands for it
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_same_call_gives_the_same_bits_anywhere(name: str) -> None:
    config = replace(ViewConfig(size=32), stain=0.2, stain_p=1.0, symmetries="all", reference=True, local_views=1)
    tiles = _tiles(3)
    torch.manual_seed(0)
    expected = sample_views(tiles, config, seed=1)
    torch.manual_seed(1)
    with SURROUNDINGS[name]():
        found = sample_views(tiles, config, seed=1)
        weight = overlap(found.first.crop, found.second.crop, 4).weight
    assert found.reference is not None and expected.reference is not None
    views = [*found[:2], *found.locals, found.reference]
    for one, other in zip(views, [*expected[:2], *expected.locals, expected.reference], strict=True):
        assert one.images.dtype == torch.float32 and torch.equal(one.images, other.images)
        assert torch.equal(one.crop.rows, other.crop.rows)
    assert torch.equal(found.tiles, expected.tiles)
    assert torch.equal(weight, overlap(expected.first.crop, expected.second.crop, 4).weight)


def test_what_does_not_fit_the_tiles_is_refused() -> None:
    """One number of a tile gave all tiles the same crop and colours."""
    unchecked: Any = inspect.unwrap(sample_views)  # without the tests' check of shapes, as users have it
    tiles = _tiles(4)
    for name, one in (("index", torch.tensor([7])), ("sizes", torch.tensor([96, 96])), ("mpp", torch.rand(4, 1))):
        with pytest.raises(ValueError, match=f"{name} .* does not fit 4 tiles"):
            unchecked(tiles, RAW, **{name: one})
    for wrong in (tiles[:, :1], tiles[0], tiles.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="are not b x 3 x height x width"):
            unchecked(wrong, RAW)


@pytest.mark.parametrize("size", [(96, 64), (0, 96), (64, 97)])
def test_sizes_that_no_tile_can_have_are_refused(size: tuple[int, int]) -> None:
    """As width and height they gave views of nan."""
    tiles = _tiles(2, 64, 96)
    with pytest.raises(ValueError, match="height and width, from 1 to 64 x 96"):
        sample_views(tiles, RAW, sizes=torch.tensor([(64, 96), size]))
    for fine in ((64, 96), (1, 1), (40, 96)):
        assert sample_views(tiles, RAW, sizes=torch.tensor([fine, fine])).first.images.isfinite().all()


@pytest.mark.parametrize("mpp", [None, 0.0, -0.5, math.nan])
def test_a_resolution_that_is_none_is_unknown(mpp: float | None) -> None:
    """Of 0 the crop was whatever the tile held."""
    tiles = _tiles(2)
    known = None if mpp is None else torch.tensor([0.5, mpp])
    with pytest.raises(UserError, match=r"views\.mpp=1\.0 needs every tile's own mpp"):
        sample_views(tiles, replace(RAW, mpp=1.0, area=(0.1, 0.5)), mpp=known)
    sample_views(tiles, RAW, mpp=known)  # which does not ask
