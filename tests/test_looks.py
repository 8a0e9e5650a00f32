"""What is drawn for a view: crops, symmetries, colours, scale, and the settings that are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torchvision.transforms as T
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from colocate.base.errors import UserError
from colocate.core.geometry import Crop
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_params


def _crop_table(config: ViewConfig, height: int, width: int, count: int = 20_000) -> tuple[Crop, Tensor, Tensor]:
    crop = sample_params(config, torch.tensor([height, width]).expand(count, 2), torch.arange(count), 0, 0, 0).crop
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
    assert not crop.transpose.any() and bool((crop.rows.diff() > 0).all())  # of symmetries, MoCo-v2 flips sideways only
    assert abs(float((crop.cols.diff() < 0).double().mean()) - 0.5) < 0.02
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
    looks = sample_params(config, torch.tensor([64, 64]).expand(count, 2), torch.arange(count), 0, 0, 0)
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
    looks = sample_params(config, torch.tensor([64, 64]).expand(2000, 2), torch.arange(2000), 0)
    assert float(looks.factors[:, :3].min()) >= 0 and float(looks.factors[:, 3].min()) < -0.4


# Micrometres -----------------------------------------------------------------------------------------------------


def test_crops_have_one_physical_scale() -> None:
    config = ViewConfig(size=64, mpp=0.5, area=(1.0, 1.0), ratio=(1.0, 1.0))
    mpp = torch.tensor([0.25, 0.5, 1.0])
    crop = sample_params(config, torch.tensor([512, 512]).expand(3, 2), torch.arange(3), 0, mpp=mpp).crop
    assert (crop.rows[:, 1] - crop.rows[:, 0]).tolist() == [128, 64, 32]
    assert (crop.area().sqrt() * mpp / config.size).tolist() == [0.5, 0.5, 0.5]


def test_areas_with_mpp_are_fractions_of_a_view() -> None:
    config = ViewConfig(size=64, mpp=0.5)
    count = 4000
    sizes, mpp = torch.tensor([512, 512]).expand(count, 2), torch.full((count,), 0.25, dtype=torch.float64)
    area = sample_params(config, sizes, torch.arange(count), 0, mpp=mpp).crop.area() / 128**2
    even = 0.2 + 0.8 * torch.rand(count, generator=torch.Generator().manual_seed(0))
    assert _distance(area, even) < 1.95


def test_a_tile_too_small_for_its_scale_is_shown_whole() -> None:
    config = ViewConfig(size=64, mpp=1.0, area=(1.0, 1.0), ratio=(1.0, 1.0))
    crop = sample_params(config, torch.tensor([[60, 60]]), torch.arange(1), 0, mpp=torch.tensor([0.25])).crop
    assert crop.area().tolist() == [3600]


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
        {"local_views": -1},
        {"local_size": 0},
        {"local_area": (0.3, 0.2)},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match="views"):
        ViewConfig(**bad)
