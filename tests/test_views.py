"""Views against torchvision's chain with the same parameters, and the promises that training rests on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from colocate.errors import UserError
from colocate.geometry import Crop
from colocate.views import IMAGENET_MEAN, IMAGENET_STD, Looks, ViewConfig, draw_looks, render, sample_views
from tests.reference.views import view_of
from tests.strategies import SYMMETRIES, crops, placed

STEP = 1 / 255
RAW = ViewConfig(size=48, mean=(0, 0, 0), std=(1, 1, 1), symmetries="all")
PLAIN = replace(RAW, jitter_p=0, grey_p=0, blur_p=0)


def _tiles(b: int, height: int = 96, width: int = 96, seed: int = 0, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (b, 3, height, width), generator=generator, dtype=torch.uint8)


def _sizes(tiles: Tensor) -> Tensor:
    return torch.tensor(tiles.shape[2:]).expand(len(tiles), 2)


def _draw(config: ViewConfig, tiles: Tensor, *key: int) -> Looks:
    return draw_looks(config, _sizes(tiles), torch.arange(len(tiles)), *(key or (0, 0, 0)))


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
    config = ViewConfig(size=48, symmetries="all", jitter=(0.9, 0.9, 0.9, 0.1), jitter_p=1.0)
    raw = replace(config, mean=(0, 0, 0), std=(1, 1, 1))
    tiles = _tiles(16)
    looks = _draw(config, tiles)
    plain = render(tiles, looks, raw).images
    assert bool((plain == 0).any()) and bool((plain == 1).any()) and bool(((plain >= 0) & (plain <= 1)).all())
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(render(tiles, looks, config).images, (plain - mean) / std, atol=1e-4, rtol=0)


def test_a_view_of_a_plain_tile_is_its_colour() -> None:
    colour = torch.tensor([200, 90, 150], dtype=torch.uint8)
    tiles = colour[None, :, None, None].expand(4, 3, 60, 70).contiguous()
    view = render(tiles, _draw(replace(PLAIN, blur_p=1.0), tiles), PLAIN)
    torch.testing.assert_close(view.images, (colour / 255)[None, :, None, None].expand(4, 3, 48, 48), atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", SYMMETRIES)
def test_symmetries_move_the_same_pixels(how: tuple[bool, bool, bool]) -> None:
    """Vertical flip, then horizontal flip, then transposition of the upright view."""
    tiles = _tiles(1, 80, 110)
    looks = _draw(PLAIN, tiles)
    upright = render(tiles, looks._replace(crop=crops([placed((10, 70), (20, 90), (False, False, False))])), PLAIN)
    view = render(tiles, looks._replace(crop=crops([placed((10, 70), (20, 90), how)])), PLAIN)
    expected = upright.images
    for yes, dim in zip(how[:2], (2, 3), strict=True):
        expected = expected.flip(dim) if yes else expected
    expected = expected.mT if how[2] else expected
    torch.testing.assert_close(view.images, expected, atol=1e-5, rtol=0, check_stride=False)


# Only the crop is read -------------------------------------------------------------------------------------------


def test_pixels_outside_the_crop_are_never_read() -> None:
    config, tiles = replace(RAW, stain=0.2), _tiles(16, 90, 100)
    looks = _draw(config, tiles)
    poisoned = _tiles(16, 90, 100, seed=1)
    for i, (rows, cols) in enumerate(
        zip(looks.crop.rows.long().tolist(), looks.crop.cols.long().tolist(), strict=True)
    ):
        inside = (i, slice(None), slice(min(rows), max(rows)), slice(min(cols), max(cols)))
        poisoned[inside] = tiles[inside]
    assert not torch.equal(poisoned, tiles)
    assert torch.equal(render(poisoned, looks, config).images, render(tiles, looks, config).images)


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


def test_the_same_call_gives_the_same_bits() -> None:
    tiles, config = _tiles(4), replace(RAW, stain=0.1)
    torch.manual_seed(0)
    one = sample_views(tiles, config, seed=3, epoch=1)
    torch.manual_seed(1)
    other = sample_views(tiles, config, seed=3, epoch=1)
    assert torch.equal(one.first.images, other.first.images) and torch.equal(one.second.images, other.second.images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sample_views(tiles, config, seed=3, epoch=1)
    assert torch.equal(one.first.images, cast.first.images)


def test_seed_epoch_tile_and_view_each_change_the_crop() -> None:
    tiles = _tiles(2, 224, 224)
    base = sample_views(tiles, PLAIN, seed=0, epoch=0)
    assert not torch.equal(base.first.crop.rows, base.second.crop.rows)
    assert not torch.equal(base.first.crop.rows[0], base.first.crop.rows[1])
    for change in ({"seed": 1}, {"epoch": 1}, {"index": torch.tensor([2, 3])}):
        assert not torch.equal(sample_views(tiles, PLAIN, **change).first.crop.rows, base.first.crop.rows)


def test_the_pixels_belong_to_the_crop_that_is_handed_out() -> None:
    tiles = _tiles(6, 80, 110)
    batch = sample_views(tiles, PLAIN, seed=5)
    for view in (batch.first, batch.second):
        looks = _draw(PLAIN, tiles)._replace(crop=view.crop)
        for i in range(6):
            assert (view.images[i] - view_of(tiles[i], looks, i, PLAIN.size)).abs().max() < 1e-3
    assert batch[2].tolist() == list(range(6))


# What is drawn ---------------------------------------------------------------------------------------------------


def _crop_table(config: ViewConfig, height: int, width: int, count: int = 20_000) -> tuple[Crop, Tensor, Tensor]:
    crop = draw_looks(config, torch.tensor([height, width]).expand(count, 2), torch.arange(count), 0, 0, 0).crop
    return crop, (crop.rows[:, 1] - crop.rows[:, 0]).abs(), (crop.cols[:, 1] - crop.cols[:, 0]).abs()


def _distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov and Smirnov's, between two samples: above 1.95 once in a thousand draws from one distribution."""
    both = torch.cat([a, b]).double().sort().values
    steps = [torch.searchsorted(x.double().sort().values, both, right=True) / len(x) for x in (a, b)]
    return float((steps[0] - steps[1]).abs().max()) * math.sqrt(len(a) * len(b) / (len(a) + len(b)))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (150, 400)])
def test_crops_are_drawn_as_random_resized_crops_are(height: int, width: int) -> None:
    config = ViewConfig()
    crop, high, wide = _crop_table(config, height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([T.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    top, left, their_high, their_wide = theirs.double().T
    assert _distance(high * wide, their_high * their_wide) < 1.95
    assert _distance(wide / high, their_wide / their_high) < 1.95
    assert _distance(high, their_high) < 1.95 and _distance(wide, their_wide) < 1.95
    if height == width:  # where nothing fits, theirs is in the middle and ours anywhere
        assert _distance(crop.rows.amin(1), top) < 1.95 and _distance(crop.cols.amin(1), left) < 1.95


def test_area_and_ratio_are_uniform_where_all_fit() -> None:
    config = ViewConfig(area=(0.05, 0.3))
    _, high, wide = _crop_table(config, 1000, 1000)
    generator = torch.Generator().manual_seed(0)
    assert _distance(high * wide / 1e6, 0.05 + 0.25 * torch.rand(20_000, generator=generator)) < 1.95
    low, top = math.log(3 / 4), math.log(4 / 3)
    assert _distance((wide / high).log(), low + (top - low) * torch.rand(20_000, generator=generator)) < 1.95
    _, high, wide = _crop_table(replace(config, ratio=(2.0, 3.0)), 1000, 1000, 100)
    assert bool((wide > 1.9 * high).all())


@settings(max_examples=25)
@example(5, 1, (1.0, 1.0), (2.0, 3.0))  # nothing fits, and the largest that would is half a pixel high
@example(1, 5, (1.0, 1.0), (0.1, 0.2))
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([(0.2, 1.0), (1.0, 1.0), (0.01, 0.05)]),
    st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (2.0, 3.0), (0.1, 0.2)]),
)
def test_crops_lie_inside_their_tiles_on_whole_pixels(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    config = ViewConfig(area=area, ratio=ratio, symmetries="all")
    crop, high, wide = _crop_table(config, height, width, 200)
    for ends, length in ((crop.rows, height), (crop.cols, width)):
        assert bool((ends == ends.round()).all()) and bool((ends >= 0).all()) and bool((ends <= length).all())
    assert bool((high >= 1).all()) and bool((wide >= 1).all())


def test_whole_tiles_are_reachable_and_the_last_pixel_too() -> None:
    crop, high, wide = _crop_table(ViewConfig(area=(1.0, 1.0), ratio=(1.0, 1.0)), 64, 64, 50)
    assert bool((high == 64).all()) and bool((wide == 64).all())
    crop, *_ = _crop_table(ViewConfig(area=(0.2, 0.3)), 16, 16)
    assert crop.rows.min() == 0 and crop.rows.max() == 16 and crop.cols.min() == 0 and crop.cols.max() == 16


@pytest.mark.parametrize(("symmetries", "count"), [("none", 1), ("horizontal", 2), ("flips", 4), ("all", 8)])
def test_symmetries_restrict_what_is_drawn(symmetries: str, count: int) -> None:
    crop, *_ = _crop_table(ViewConfig(symmetries=symmetries), 64, 64, 8000)  # type: ignore[arg-type]
    upside, sideways = crop.rows[:, 0] > crop.rows[:, 1], crop.cols[:, 0] > crop.cols[:, 1]
    code = upside.long() * 4 + crop.transpose.long() * 2 + sideways.long()
    allowed = {"none": {0}, "horizontal": {0, 1}, "flips": {0, 1, 4, 5}, "all": set(range(8))}[symmetries]
    numbers = torch.bincount(code, minlength=8)
    assert {i for i in range(8) if numbers[i] > 0} == allowed
    expected = 8000 / count
    assert all(abs(int(numbers[i]) - expected) < 4 * math.sqrt(expected) + 1 for i in allowed)


def test_looks_follow_their_probabilities() -> None:
    config = ViewConfig(stain=0.3, stain_p=0.7)
    count = 20_000
    looks = draw_looks(config, torch.tensor([64, 64]).expand(count, 2), torch.arange(count), 0, 0, 0)
    jittered, blurred = (looks.factors != torch.tensor([1, 1, 1, 0])).any(1), looks.sigma_px > 0
    stained = (looks.stain_scale != 1).any(1)
    for part, p in ((jittered, 0.8), (blurred, 0.5), (looks.grey, 0.2), (stained, 0.7)):
        assert abs(float(part.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / count)
    generator = torch.Generator().manual_seed(0)

    def even(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    for i, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]):
        assert _distance(looks.factors[jittered, i], even(low, high)) < 1.95
    assert _distance(looks.sigma_px[blurred], even(0.1, 2.0)) < 1.95
    for i in range(3):
        assert _distance(looks.stain_scale[stained, i], even(0.7, 1.3)) < 1.95
        assert _distance(looks.stain_shift[stained, i], even(-0.3, 0.3)) < 1.95
    # Decisions are made apart from each other and from the amounts.
    columns = torch.stack([jittered, blurred, looks.grey, stained]).double()
    columns = torch.cat([columns, looks.factors.T.double(), looks.sigma_px[None].double(), looks.crop.rows.T.double()])
    correlation = torch.corrcoef(columns) - torch.eye(len(columns))
    correlation[1, 8] = correlation[8, 1] = correlation[9, 10] = correlation[10, 9] = 0  # those that belong together
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(count)


def test_strong_jitter_never_makes_a_negative_factor() -> None:
    config = ViewConfig(jitter=(1.5, 2.0, 3.0, 0.5), jitter_p=1.0)
    looks = draw_looks(config, torch.tensor([64, 64]).expand(2000, 2), torch.arange(2000), 0)
    assert float(looks.factors[:, :3].min()) >= 0 and float(looks.factors[:, 3].min()) < -0.4


# Micrometres -----------------------------------------------------------------------------------------------------


def test_crops_have_one_physical_scale() -> None:
    config = ViewConfig(size=64, mpp=0.5, area=(1.0, 1.0), ratio=(1.0, 1.0))
    mpp = torch.tensor([0.25, 0.5, 1.0])
    crop = draw_looks(config, torch.tensor([512, 512]).expand(3, 2), torch.arange(3), 0, mpp=mpp).crop
    assert (crop.rows[:, 1] - crop.rows[:, 0]).tolist() == [128, 64, 32]
    assert (crop.area().sqrt() * mpp / config.size).tolist() == [0.5, 0.5, 0.5]


def test_areas_with_mpp_are_fractions_of_a_view() -> None:
    config = ViewConfig(size=64, mpp=0.5)
    count = 4000
    sizes, mpp = torch.tensor([512, 512]).expand(count, 2), torch.full((count,), 0.25, dtype=torch.float64)
    area = draw_looks(config, sizes, torch.arange(count), 0, mpp=mpp).crop.area() / 128**2
    even = 0.2 + 0.8 * torch.rand(count, generator=torch.Generator().manual_seed(0))
    assert _distance(area, even) < 1.95


def test_a_tile_too_small_for_its_scale_is_shown_whole() -> None:
    config = ViewConfig(size=64, mpp=1.0, area=(1.0, 1.0), ratio=(1.0, 1.0))
    crop = draw_looks(config, torch.tensor([[60, 60]]), torch.arange(1), 0, mpp=torch.tensor([0.25])).crop
    assert crop.area().tolist() == [3600]


@pytest.mark.parametrize("mpp", [None, torch.tensor([0.5, math.nan])])
def test_an_unknown_scale_is_refused(mpp: Tensor | None) -> None:
    with pytest.raises(UserError, match="mpp"):
        sample_views(_tiles(2), replace(RAW, mpp=0.5), mpp=mpp)


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


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_blank_tiles_under_stain_jitter_stay_finite(level: int) -> None:
    config = replace(ViewConfig(size=32), stain=0.9, stain_p=1.0, jitter_p=1.0)
    tiles = torch.full((32, 3, 40, 40), level, dtype=torch.uint8)
    tiles[16:, :, :20] = 255
    bright = (1 - torch.tensor(config.mean)) / torch.tensor(config.std)
    for view in sample_views(tiles, config)[:2]:
        assert bool(view.images.isfinite().all())
        assert bool((view.images <= bright[:, None, None] + 1e-6).all())


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


# Bad settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"size": -3},
        {"area": (0.0, 1.0)},
        {"area": (0.5, 0.2)},
        {"area": (0.2, 1.1)},
        {"area": (math.nan, 1.0)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (-1.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"jitter": (-0.1, 0.4, 0.4, 0.1)},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"jitter": (0.4, math.nan, 0.4, 0.1)},
        {"jitter_p": 1.1},
        {"jitter_p": -0.1},
        {"grey_p": 2.0},
        {"blur_p": -1.0},
        {"blur_p": math.nan},
        {"blur_px": (0.0, 1.0)},
        {"blur_px": (2.0, 0.1)},
        {"stain": -0.1},
        {"stain": 1.0},
        {"stain_p": 1.5},
        {"mpp": 0.0},
        {"mpp": -0.5},
        {"mpp": math.nan},
        {"mpp": 1000.0},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, math.nan, 0.2)},
        {"mean": (0.2, math.nan, 0.2)},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match="views"):
        ViewConfig(**bad)


def test_the_defaults_are_the_papers() -> None:
    config = ViewConfig()
    assert (config.size, config.area, config.jitter) == (224, (0.2, 1.0), (0.4, 0.4, 0.4, 0.1))
    assert (config.jitter_p, config.grey_p, config.blur_p, config.blur_px) == (0.8, 0.2, 0.5, (0.1, 2.0))
    assert config.symmetries == "horizontal" and (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert config.stain == 0 and config.mpp is None
