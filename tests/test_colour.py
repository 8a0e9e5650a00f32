"""Colour as one affine map, a step at a time against torchvision's, and stain jitter in optical density."""

from __future__ import annotations

import colorsys

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from colocate.core.views import LUMA, affine, colour_matrix, jitter_stain, stain_matrix

STEP = 1 / 255


def _view(seed: int = 0, low: float = 0.25, high: float = 0.6) -> Tensor:
    """A colourful image that no step below takes out of [0, 1]."""
    noise = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise[:, 0] = noise[:, 0] * 0.7 + 0.3  # rather red than grey
    return low + (high - low) * noise


def _ours(view: Tensor, factors: list[float], grey: bool = False) -> Tensor:
    matrix, offset = colour_matrix(torch.tensor([factors], dtype=view.dtype), torch.tensor([grey]))
    mean = view.mean((2, 3))
    return affine(view, matrix, (offset * mean).sum(1, keepdim=True).expand(-1, 3))


UNCHANGED = [1.0, 1.0, 1.0, 0.0]


def test_no_change_changes_nothing() -> None:
    torch.testing.assert_close(_ours(_view(), UNCHANGED), _view(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_steps_are_torchvisions(factor: float) -> None:
    view = _view()
    steps = {0: TF.adjust_brightness, 1: TF.adjust_contrast, 2: TF.adjust_saturation}
    for place, step in steps.items():
        factors = UNCHANGED.copy()
        factors[place] = factor
        expected = step(view[0], factor)
        assert expected.min() > 0 and expected.max() < 1, "a clamp hit: the test compares nothing"
        assert (_ours(view, factors)[0] - expected).abs().max() < STEP


def test_grey_is_torchvisions() -> None:
    view = _view()
    grey = _ours(view, UNCHANGED, grey=True)
    assert (grey[0] - TF.rgb_to_grayscale(view[0], 3)).abs().max() < STEP
    torch.testing.assert_close(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_all_steps_in_their_order() -> None:
    """Brightness, contrast, saturation, grey: the order matters for the contrast's mean."""
    view = _view(low=0.3, high=0.55)
    expected = TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(view[0], 1.3), 0.7), 1.4)
    assert (_ours(view, [1.3, 0.7, 1.4, 0.0])[0] - expected).abs().max() < STEP
    grey = TF.rgb_to_grayscale(expected, 3)
    assert (_ours(view, [1.3, 0.7, 1.4, 0.1], grey=True)[0] - grey).abs().max() < STEP


def test_contrast_takes_the_mean_of_its_own_view() -> None:
    views = torch.cat([_view(1), _view(2, 0.4, 0.45)])
    factors = torch.tensor([[1.0, 0.5, 1.0, 0.0]] * 2, dtype=torch.float64)
    matrix, offset = colour_matrix(factors, torch.zeros(2, dtype=torch.bool))
    grey = (offset * views.mean((2, 3))).sum(1, keepdim=True).expand(-1, 3)
    both = affine(views, matrix, grey)
    for i in range(2):
        assert (both[i] - TF.adjust_contrast(views[i], 0.5)).abs().max() < STEP
    luma = (LUMA.double()[:, None, None] * both).sum(1).mean((1, 2))
    torch.testing.assert_close(luma, (LUMA.double()[:, None, None] * views).sum(1).mean((1, 2)))


def _hue(colour: Tensor) -> float:
    return colorsys.rgb_to_hsv(*colour.tolist())[0]


def _turn(colour: Tensor, other: Tensor) -> float:
    """Signed turns from one colour's hue to another's."""
    return (_hue(other) - _hue(colour) + 0.5) % 1 - 0.5


@pytest.mark.parametrize("turns", [-0.1, -0.03, 0.05, 0.1])
def test_hue_turns_as_hsv_does_roughly(turns: float) -> None:
    circle = [colorsys.hsv_to_rgb(i / 36, 0.3, 0.6) for i in range(36)]
    view = torch.tensor(circle, dtype=torch.float64).T.reshape(1, 3, 6, 6)
    ours = _ours(view, [1, 1, 1, turns]).flatten(2)[0].T
    exact = TF.adjust_hue(view[0], turns).flatten(1).T
    turned = [_turn(a, b) for a, b in zip(view.flatten(2)[0].T, ours, strict=True)]
    expected = [_turn(a, b) for a, b in zip(view.flatten(2)[0].T, exact, strict=True)]
    assert all(e == pytest.approx(turns, abs=0.01) for e in expected)
    assert all(0.4 < t / turns < 2.5 for t in turned), turned
    assert sum(turned) / len(turned) == pytest.approx(turns, rel=0.1)


def test_hue_leaves_greys_and_luma_alone() -> None:
    grey = torch.linspace(0, 1, 36, dtype=torch.float64).reshape(1, 1, 6, 6).expand(1, 3, 6, 6)
    torch.testing.assert_close(_ours(grey, [1, 1, 1, 0.3]), grey.contiguous(), atol=1e-3, rtol=0)
    view, luma = _view(), LUMA.double()[:, None, None]
    torch.testing.assert_close((luma * _ours(view, [1, 1, 1, 0.3])).sum(1), (luma * view).sum(1), atol=1e-3, rtol=0)


def test_a_whole_turn_is_none() -> None:
    torch.testing.assert_close(_ours(_view(), [1, 1, 1, 1]), _ours(_view(), UNCHANGED))


# Stain -----------------------------------------------------------------------------------------------------------


def test_stain_scales_and_shifts_concentrations() -> None:
    """Beer and Lambert: intensity = exp(-sum of concentration x stain); jitter scales and shifts concentrations."""
    stains = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64)
    stains = stains / stains.norm(dim=1, keepdim=True)
    amounts = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.8

    def image(amounts: Tensor) -> Tensor:
        return torch.exp(-torch.einsum("sc,shw->chw", stains, amounts))

    scale, shift = torch.tensor([1.2, 0.7, 1.05]).double(), torch.tensor([0.05, -0.02, 0.1]).double()
    matrix, offset = stain_matrix(scale[None], shift[None])
    ours = jitter_stain(image(amounts)[None], matrix, offset)[0]
    expected = image(scale[:, None, None] * amounts + shift[:, None, None])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1 / 255, 0.5, 1.0])
@pytest.mark.parametrize("strength", [0.05, 0.5, 0.99])
def test_blank_and_black_tiles_stay_finite(level: float, strength: float) -> None:
    corners = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) * strength
    matrix, offset = stain_matrix(1 + corners, corners)
    view = torch.full((8, 3, 4, 4), level)
    view[:, 0, 0, 0] = 0
    view[:, 1, 1, 1] = 1
    stained = jitter_stain(view, matrix, offset)
    assert bool(stained.isfinite().all()) and bool((stained >= 0).all())
