"""Principal components as colour: like cells alike, unlike ones apart, a few odd ones not washing out the rest."""

from __future__ import annotations

import torch

from colocate.pages.panels import principal_colours


def two_kinds() -> torch.Tensor:
    """Cells of two tiles: the left half of one kind, the right of another, with a little noise."""
    torch.manual_seed(0)
    kinds = torch.randn(2, 32)
    cells = torch.cat([kinds[:1].expand(6, 32), kinds[1:].expand(6, 32)]).expand(2, 6, 12, 32)
    return cells + 0.05 * torch.randn(2, 6, 12, 32)


def test_like_cells_get_like_colours_in_all_tiles() -> None:
    colours, share = principal_colours(two_kinds())
    assert colours.shape == (2, 6, 12, 3)
    assert colours.min() >= 0 and colours.max() <= 1
    left, right = colours[:, :, :6, 0], colours[:, :, 6:, 0]  # the first component is what tells them apart
    assert (left.mean() - right.mean()).abs() > 0.8
    assert left.std() < 0.1 and right.std() < 0.1
    assert 0.5 < share <= 1


def test_length_of_features_does_not_count() -> None:
    cells = two_kinds()
    lengths = torch.rand(2, 6, 12, 1) + 0.5
    assert torch.allclose(principal_colours(cells)[0], principal_colours(cells * lengths)[0], atol=1e-4)


def test_an_odd_cell_does_not_wash_out_the_rest() -> None:
    cells = two_kinds()
    cells[0, 0, 0] = -cells[0, 0, 0] * 3
    colours, _ = principal_colours(cells)
    spread = colours[:, 1:].flatten(0, 2).amax(0) - colours[:, 1:].flatten(0, 2).amin(0)
    assert spread.max() > 0.8


def test_constant_features_are_one_flat_colour() -> None:
    colours, _ = principal_colours(torch.ones(2, 3, 3, 8))
    assert colours.isfinite().all()
    assert colours.flatten(0, 2).std(0).max() < 1e-6


def test_three_channels_are_enough() -> None:
    colours, share = principal_colours(torch.rand(1, 4, 4, 3))
    assert colours.shape == (1, 4, 4, 3)
    assert share > 0.999
