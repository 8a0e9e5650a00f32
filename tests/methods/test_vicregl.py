"""VICRegL and PLM's form of it, against published values and the equations in plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from colocate.errors import UserError
from colocate.geometry import Crop
from colocate.matching import Nearest, nearest_centre
from colocate.methods.rules import NearestCentre, NearestFeature, Overlap
from colocate.methods.vicregl import VICRegL, VICRegLConfig
from colocate.networks import Features
from colocate.train import build_method
from colocate.views import View
from tests.methods.test_golden import close, crops
from tests.methods.test_moco import batch_of
from tests.reference import vicreg as slow
from tests.reference.overlap import overlap_matrix
from tests.tiny import tiny_recipe

CONFIG = VICRegLConfig(width=16, cells_width=8, best=5)


@pytest.fixture
def values(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "vicregl_concl.npz") as stored:
        return {key.removeprefix("vicregl."): torch.from_numpy(stored[key]) for key in stored}


def built(config: VICRegLConfig = CONFIG) -> VICRegL:
    method = build_method(tiny_recipe(Path(), Path(), method=config)).double().eval()
    assert isinstance(method, VICRegL)
    return method


def only(config: VICRegLConfig, term: str) -> VICRegLConfig:
    off = dict.fromkeys({"invariance", "variance", "covariance"} - {term}, 0.0)
    return replace(config, **off)  # type: ignore[arg-type]


@pytest.mark.parametrize("term", ["invariance", "variance", "covariance"])
def test_published_whole_terms(values: dict[str, Tensor], term: str) -> None:
    method = built(only(VICRegLConfig(), term))
    torch.testing.assert_close(method.vicreg(values["whole_0"], values["whole_1"]), values[f"whole_{term}"])


def test_published_whole_gradients(values: dict[str, Tensor]) -> None:
    x, y = (values[f"whole_{view}"].clone().requires_grad_() for view in (0, 1))
    built(VICRegLConfig()).vicreg(x, y).backward()
    for ours, name in ((x, "grad_whole_0"), (y, "grad_whole_1")):
        assert ours.grad is not None
        close(ours.grad, values[name], 1e-6)


def tied_choices(match: Nearest, best: int) -> list[Tensor]:
    """Every choice of the `best` cells of each tile that equal distances allow, as b x k numbers."""
    each = []
    for distance in -match.closeness:
        last = distance.sort().values[best - 1]
        sure = (distance < last - 1e-9).nonzero().squeeze(1).tolist()
        tied = ((distance - last).abs() <= 1e-9).nonzero().squeeze(1).tolist()
        each.append([sorted(sure + list(more)) for more in combinations(tied, best - len(sure))])
    return [torch.tensor(choice) for choice in product(*each)]


def test_published_cell_terms_and_gradients(values: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The 20 nearest centres are not unique here (cells of a column lie equally far): one of the choices must fit."""
    first, second = crops(values, 0), crops(values, 1)
    matches = nearest_centre(first, second), nearest_centre(second, first)
    choices = [tied_choices(match, int(values["best_matches"])) for match in matches]
    for match, some in zip(matches, choices, strict=True):
        assert any(torch.equal(match.best(20), choice) for choice in some)

    cells = [values[f"cells_{view}"].clone().requires_grad_() for view in (0, 1)]
    seen = [Features(cell[:, 0], cell, cell, (7, 7)) for cell in cells]
    views = [View(torch.zeros(8, 3, 7, 7), crop) for crop in (first, second)]
    names = ("invariance", "variance", "covariance")
    methods = [built(only(VICRegLConfig(), term)) for term in names]

    def from_one_side(side: int, choice: Tensor) -> Tensor:
        sides = views[side], views[1 - side], seen[side], seen[1 - side]
        with monkeypatch.context() as patch:
            patch.setattr(Nearest, "best", lambda self, count: choice)
            each = [(NearestFeature(), None), (NearestCentre(), 20)]
            return torch.stack([sum(method.matched(*rule, *sides) for rule in each) for method in methods])  # type: ignore[misc]

    with torch.no_grad():
        there, back = ([from_one_side(side, choice) for choice in choices[side]] for side in (0, 1))
    expected = torch.stack([values[f"cells_{term}"] for term in names])
    fitting = [
        (i, j)
        for i, j in product(range(len(there)), range(len(back)))
        if torch.allclose((there[i] + back[j]) / 2, expected, rtol=1e-6, atol=0)
    ]
    assert len(fitting) == 1
    ((i, j),) = fitting
    ((from_one_side(0, choices[0][i]) + from_one_side(1, choices[1][j])) / 2).sum().backward()
    for cell, name in zip(cells, ("grad_cells_0", "grad_cells_1"), strict=True):
        assert cell.grad is not None
        close(cell.grad, values[name], 1e-6)


def plain_cells(config: VICRegLConfig, own: Crop, other: Crop, x: Tensor, y: Tensor, grid: tuple[int, int]) -> Tensor:
    """VICRegL's local term from one side, in loops; with Overlap, PLM's."""

    def term(pairs: list[list[tuple[Tensor, Tensor, float]]]) -> Tensor:
        """pairs[slot][tile]: a cell, its partner and its weight."""
        loss = x.new_zeros(())
        for slot in pairs:
            errors = [weight * slow.invariance(a[None], b[None]) for a, b, weight in slot]
            loss = loss + config.invariance * torch.stack(errors).mean()
            for stacked in (torch.stack([a for a, _, _ in slot]), torch.stack([b for _, b, _ in slot])):
                loss = loss + config.variance * slow.variance(stacked) / 2
                loss = loss + config.covariance * slow.covariance(stacked) / 2
        return loss / len(pairs)

    n, tiles = x.shape[1], range(len(x))
    by_feature = [slow.nearest(list(x[t]), list(y[t]))[0] for t in tiles]
    loss = term([[(x[t, i], y[t, by_feature[t][i]], 1.0) for t in tiles] for i in range(n)])

    kept, partners, weights = [], [], []
    shares = overlap_matrix(own, other, grid, grid)
    for t in tiles:
        if isinstance(config.location, Overlap):
            weight = shares[t].sum(1).tolist()
            order = sorted(range(n), key=lambda i: -round(weight[i], 9))
            partners.append([shares[t, i] @ y[t] / (weight[i] or 1) for i in range(n)])
        else:
            places = [[torch.tensor(c, dtype=x.dtype) for c in slow.centres(crop, t, grid)] for crop in (own, other)]
            index, distance = slow.nearest(*places)
            weight, order = [1.0] * n, sorted(range(n), key=lambda i: round(distance[i], 9))
            partners.append([y[t, j] for j in index])
        kept.append(sorted(order[: config.best]))
        weights.append(weight)
    slots = range(config.best)
    return loss + term([[(x[t, i := kept[t][s]], partners[t][i], weights[t][i]) for t in tiles] for s in slots])


@pytest.mark.parametrize("location", [NearestCentre(), Overlap()])
def test_the_loss_is_the_papers(location: NearestCentre | Overlap) -> None:
    config = replace(CONFIG, location=location)
    method, batch = built(config), batch_of(count=4)
    losses = method(batch)
    x, y = method.query(batch.first.images), method.query(batch.second.images)
    assert losses.cells is not None and x.cells is not None and y.cells is not None
    first, second = batch.first.crop, batch.second.crop
    there = plain_cells(config, first, second, x.cells, y.cells, x.grid)
    back = plain_cells(config, second, first, y.cells, x.cells, y.grid)
    torch.testing.assert_close(losses.cells, 0.25 * (there + back) / 2)

    whole = config.invariance * slow.invariance(x.whole, y.whole)
    for z in (x.whole, y.whole):
        whole = whole + config.variance * slow.variance(z) / 2 + config.covariance * slow.covariance(z) / 2
    torch.testing.assert_close(losses.whole, 0.75 * whole)


def test_every_parameter_learns_and_cells_apart_weigh_nothing() -> None:
    method, batch = built(replace(CONFIG, location=Overlap())).train(), batch_of(count=4)
    method(batch).total().backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []
    left, right = (Crop.of([ends] * 4) for ends in ([0, 0, 96, 40], [0, 50, 96, 96]))
    views = View(batch.first.images, left), View(batch.second.images, right)
    x, y = (method.query(view.images) for view in views)
    alone = built(only(replace(CONFIG, location=Overlap()), "invariance"))
    assert alone.matched(Overlap(), 5, *views, x, y) == 0 < alone.matched(NearestFeature(), None, *views, x, y)


def test_one_tile_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="2 or more tiles a device"):
        built()(batch_of(count=1))


@pytest.mark.parametrize("changes", [{"alpha": 2.0}, {"variance": -1.0}, {"best": 0}, {"width": 0}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="method"):
        replace(CONFIG, **changes)  # type: ignore[arg-type]
