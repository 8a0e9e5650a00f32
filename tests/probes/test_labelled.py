"""The probe of a labelled data set against plain loops, and logistic regression against its own optimality."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from colocate.base.errors import UserError
from colocate.core.settings import ProbeConfig
from colocate.datasets.labelled import Labelled
from colocate.models.backbones import Backbone
from colocate.training.probes import at_pixels, fit_linear, frozen_cells, probe, settled
from tests.evaluate.tissue import write_partly, write_tissue

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


PATCHES = nn.AvgPool2d(8)
"""A backbone that knows the mean colour of each 8 x 8 cell, and nothing else."""


def asked(data: Labelled, train: list[int], test: list[int], config: ProbeConfig, seed: int = 0) -> list[Any]:
    look = frozen_cells(PATCHES, data, train, config, *PLAIN)
    return list(probe(look, data, train, test, config, seed))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return write_tissue(tmp_path_factory.mktemp("tissue") / "discs", height=60, width=84)  # no whole number of cells


@pytest.fixture(scope="module")
def rimmed(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Two of its training images are ignored all over, all others at their rims."""
    return write_partly(tmp_path_factory.mktemp("partly") / "discs", 255, blank=(0, 1))


def test_nearest_against_plain_loops(data: Labelled) -> None:
    """Every cell of every image in Python: its mean colour and share of gland; the vote of its three nearest."""
    train, test = data.train("patients")[:2], data.test("patients")[:1]
    memory: list[Tensor] = []
    shares: list[float] = []
    for number in train:
        image, mask = data.image(number).double() / 255, data.mask(number) > 0
        for top in range(0, 60, 8):
            for left in range(0, 84, 8):
                cell = _cell(image, top, left)
                memory.append(cell / cell.norm())
                shares.append(mask[top : top + 8, left : left + 8].double().mean().item())
    config = ProbeConfig("nearest", stride=8, neighbours=3)
    for number, found in asked(data, train, test, config):
        image = data.image(number).double() / 255
        grid = torch.zeros(8, 11, dtype=torch.float64)
        for row in range(8):
            for column in range(11):
                cosines = torch.stack(memory) @ _cell(image, 8 * row, 8 * column)  # but for a factor
                grid[row, column] = sum(shares[i] for i in cosines.argsort(descending=True)[:3].tolist()) / 3
        expected = nn.functional.interpolate(grid[None, None], scale_factor=8, mode="bilinear")[0, 0, :60, :84] > 0.5
        assert (expected == (found > 0)).double().mean() > 0.999  # votes that tie may fall either way


def _cell(image: Tensor, top: int, left: int) -> Tensor:
    """Mean colour of an 8 x 8 cell, white where the image ends."""
    cell = torch.ones(3, 8, 8, dtype=torch.float64)
    part = image[:, top : top + 8, left : left + 8]
    cell[:, : part.shape[1], : part.shape[2]] = part
    return cell.mean((1, 2))


@pytest.mark.parametrize(("ignored", "classifier"), [(0, "linear"), (255, "nearest")])
def test_an_ignored_rim_changes_no_call(ignored: int, classifier: str, rimmed: Labelled, tmp_path: Path) -> None:
    data = rimmed if ignored else write_partly(tmp_path / "partly", 0)
    config = ProbeConfig(classifier, stride=8, neighbours=5)  # pyright: ignore[reportArgumentType]
    first = int(ignored == 0)
    for number, found in asked(data, data.train("patients"), data.test("patients"), config):
        assert set(found.unique().tolist()) == {first, first + 1}
        truth = data.mask(number)
        assert (truth == found)[truth != ignored].double().mean() > 0.9


def test_a_network_of_another_input_size_is_named(data: Labelled) -> None:
    for statistics in ("own", "images"):
        config = ProbeConfig(stride=16, statistics=statistics)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match=r"levit_128s cannot take images of \d+ x \d+ px \(The size of tensor"):
            frozen_cells(Backbone("levit_128s", cell_stride=16), data, [0, 1], config, *PLAIN)(0)


def test_cells_of_any_size_are_whole(data: Labelled) -> None:
    """Those of a ViT with patches of 14 px are no parts of 32 px: 60 x 84 px become 70 x 84."""
    backbone = Backbone("eva02_tiny_patch14_224").eval()
    grid, side_px = frozen_cells(backbone, data, [0, 1], ProbeConfig(stride=14), *PLAIN)(0)
    padded = torch.full((1, 3, 70, 84), 1.0)
    padded[0, :, :60] = data.image(0) / 255
    with torch.no_grad():
        assert torch.equal(grid, backbone(padded)[0].permute(1, 2, 0)) and (*grid.shape[:2], side_px) == (5, 6, 14)


def test_too_little_to_learn_from_is_refused(data: Labelled) -> None:
    with pytest.raises(UserError, match="learn from"):
        asked(data, [], data.test("patients"), ProbeConfig(stride=8))
    with pytest.raises(UserError, match="that vote"):
        config = ProbeConfig("nearest", stride=8, memory=10)
        asked(data, data.train("patients"), [1], config)


def test_cells_that_are_mostly_ignored_teach_nothing(rimmed: Labelled) -> None:
    for classifier in ("linear", "nearest"):
        config = ProbeConfig(classifier, stride=8)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match="discs: in no cell of its 2 training images do half of the pixels count"):
            asked(rimmed, [0, 1], [2], config)


def test_the_memory_is_bounded_and_drawn_by_the_seed(data: Labelled) -> None:
    train, test = data.train("patients"), data.test("patients")[:1]
    config = ProbeConfig("nearest", 8, memory=30, neighbours=5)
    runs = [asked(data, train, test, config, seed)[0][1] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_images_are_looked_at_at_a_resolution_and_judged_at_their_own(data: Labelled) -> None:
    own = data.items[0].mpp
    for finer in (1, 2, 0.5):
        config = ProbeConfig(stride=8, mpp=own / finer)
        cells = frozen_cells(PATCHES, data, [0], config, *PLAIN)(0)
        assert cells.side_px == pytest.approx(8 / finer)
        assert cells.grid.shape[:2] == (-(-60 * finer // 8), -(-84 * finer // 8))
        # White is added beyond the image, so its last cells differ.
        whole = cells.grid[: int(56 * finer // 8), : int(80 * finer // 8)]
        expected = nn.functional.adaptive_avg_pool2d(
            data.image(0)[:, : int(whole.shape[0] * 8 / finer), : int(whole.shape[1] * 8 / finer)].float() / 255,
            tuple(whole.shape[:2]),
        )
        assert (whole.permute(2, 0, 1) - expected).abs().mean() < 0.02
    found = asked(data, data.train("patients"), data.test("patients")[:2], ProbeConfig(stride=8, mpp=own / 2))
    for number, called in found:
        truth = data.mask(number) > 0
        assert ((called > 0) == truth).double().mean() > 0.95
    config = ProbeConfig(stride=8, mpp=1.0)
    with pytest.raises(UserError, match="does not say its mpp"):
        items = tuple(item._replace(mpp=math.nan) for item in data.items)
        asked(replace(data, items=items), [0], [1], config)


def test_scores_at_pixels_are_interpolated_between_centres() -> None:
    scores = torch.rand(2, 3, 4)
    expected = nn.functional.interpolate(scores[None], scale_factor=8, mode="bilinear")[0]
    torch.testing.assert_close(at_pixels(scores, 8, 20, 32), expected[:, :20])
    ramp = torch.arange(5.0).expand(1, 5, 5)  # at x px: x / side - 1/2, up to the outer centres
    side = 6.4
    places = (torch.arange(32) + 0.5) / side - 0.5
    torch.testing.assert_close(at_pixels(ramp, side, 32, 32)[0, 0], places.clamp(0, 4))


def test_settling_takes_the_images_statistics(data: Labelled) -> None:
    network = nn.BatchNorm2d(3)
    moved = settled(network, data.image, dict.fromkeys(data.train("patients"), (60, 84)), *PLAIN)
    pixels = torch.cat([data.image(n)[:, 14:46, 10:74].flatten(1) for n in data.train("patients")], 1) / 255
    assert torch.allclose(moved.running_mean, pixels.mean(1), atol=1e-3)  # pyright: ignore[reportArgumentType]
    assert (network.running_mean == 0).all()


def test_statistics_are_of_images_as_they_are_looked_at(data: Labelled) -> None:
    """60 x 84 px at half of their resolution are 30 x 42: statistics are of 32 x 32, cells of 32 x 64."""
    sizes: set[tuple[int, ...]] = set()
    network = nn.Sequential(nn.BatchNorm2d(3), PATCHES)
    network.register_forward_pre_hook(lambda _, images: sizes.add(tuple(images[0].shape[2:])))
    config = ProbeConfig(stride=8, mpp=2 * data.items[0].mpp, statistics="images")
    frozen_cells(network, data, data.train("patients"), config, *PLAIN)
    assert sizes == {(32, 32)}


def test_logistic_regression_is_at_its_minimum() -> None:
    made = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=made) * torch.tensor([1.0, 2, 3, 0.1, 1, 1]) + 5
    shares = torch.rand(300, 3, generator=made).softmax(1)
    fitted = fit_linear(features, shares, decay=0.01)
    found = fitted.shares(features)
    standard = (features - fitted.centre) / fitted.spread
    slope = (found - shares).T @ standard / 300 + 0.01 * fitted.weight  # the gradient, by hand
    assert slope.abs().max() < 1e-4
    assert (found - shares).mean(0).abs().max() < 1e-4
    with pytest.raises(ValueError, match="no cells"):
        fit_linear(features[:0], shares[:0])
