"""VICRegL and PLM's form of it, against published values and the equations in plain loops."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from colocate.core.geometry import Crop
from colocate.core.matching import Nearest, nearest_centre
from colocate.core.views import Batch, View
from colocate.methods.rules import NearestCentre, NearestFeature, Overlap
from colocate.methods.settings import VICRegLConfig
from colocate.methods.vicregl import VICRegL
from colocate.models.encoder import Features
from colocate.training.loop import build_method
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


def whole_loss(method: VICRegL, x: Tensor, y: Tensor) -> Tensor:
    """The whole term, of projected features that are given."""
    method.query.forward = lambda images: Features(images, images[:, None], images[:, None], (1, 1))  # type: ignore
    crop = Crop.of([[0, 0, 8, 8]] * len(x))
    return method(Batch(View(x, crop), View(y, crop), torch.arange(len(x)))).terms["whole"] / method.config.alpha


@pytest.mark.parametrize("term", ["invariance", "variance", "covariance"])
def test_published_whole_terms(values: dict[str, Tensor], term: str) -> None:
    method = built(only(VICRegLConfig(), term))
    torch.testing.assert_close(whole_loss(method, values["whole_0"], values["whole_1"]), values[f"whole_{term}"])


def test_published_whole_gradients(values: dict[str, Tensor]) -> None:
    x, y = (values[f"whole_{view}"].clone().requires_grad_() for view in (0, 1))
    whole_loss(built(VICRegLConfig()), x, y).backward()
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


@pytest.mark.slow
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


def plain_cells(
    config: VICRegLConfig, own: View, other: View, x: Features, y: Features, best: int
) -> Tensor:  # fmt: skip
    """VICRegL's local term from one side, in loops; with Overlap, PLM's."""
    assert x.cells is not None and y.cells is not None

    def term(pairs: list[list[tuple[Tensor, Tensor, float]]]) -> Tensor:
        """pairs[slot][tile]: a cell, its partner and its weight."""
        losses = []
        for slot in pairs:
            loss = torch.stack([weight * slow.invariance(a[None], b[None]) for a, b, weight in slot]).mean()
            loss = config.invariance * loss
            for stacked in (torch.stack([a for a, _, _ in slot]), torch.stack([b for _, b, _ in slot])):
                loss = loss + config.variance * slow.variance(stacked) / 2
                loss = loss + config.covariance * slow.covariance(stacked) / 2
            losses.append(loss)
        return torch.stack(losses).mean()

    n, tiles = x.cells.shape[1], range(len(x.cells))
    nearest = [slow.nearest(list(x.cells[t]), list(y.cells[t]))[0] for t in tiles]
    loss = term([[(x.cells[t, i], y.cells[t, nearest[t][i]], 1.0) for t in tiles] for i in range(n)])

    kept, partners, weights = [], [], []
    shares = overlap_matrix(own.crop, other.crop, x.grid, y.grid)
    for t in tiles:
        if isinstance(config.location, Overlap):
            weight = shares[t].sum(1).tolist()
            single = [round(float(row.max() / (row.sum() or 1)), 9) for row in shares[t]]
            order = sorted(range(n), key=lambda i: (-round(weight[i], 6), -single[i]))
            mean = [shares[t, i] @ y.cells[t] / (weight[i] or 1) for i in range(n)]
            partners.append([mean[i] if weight[i] > 0 else x.cells[t, i] for i in range(n)])
        else:
            sides = ((own, x), (other, y))
            places = [
                [torch.tensor(c, dtype=x.cells.dtype) for c in slow.centres(view.crop, t, z.grid)] for view, z in sides
            ]
            index, distance = slow.nearest(*places)
            weight, order = [1.0] * n, sorted(range(n), key=lambda i: round(distance[i], 6))
            partners.append([y.cells[t, j] for j in index])
        kept.append(sorted(order[:best]))
        weights.append(weight)
    slots = range(len(kept[0]))
    return loss + term([[(x.cells[t, i := kept[t][s]], partners[t][i], weights[t][i]) for t in tiles] for s in slots])


@pytest.mark.slow
@pytest.mark.parametrize(("location", "local_views"), [(NearestCentre(), 0), (Overlap(), 2)])
def test_the_loss_is_the_papers(location: NearestCentre | Overlap, local_views: int) -> None:
    config = replace(CONFIG, location=location)
    method, batch = built(config), batch_of(count=2, local_views=local_views)
    plain = copy.deepcopy(method)
    views = (batch.first, batch.second, *batch.locals)
    seen = [plain.query(view.images) for view in views]
    pairs = [(i, j) for i in (0, 1) for j in range(i + 1, len(views))]
    best = [config.best, config.best] + [config.best_local] * local_views
    cells = []
    for i, j in pairs:
        there = plain_cells(config, views[i], views[j], seen[i], seen[j], best[i])
        back = plain_cells(config, views[j], views[i], seen[j], seen[i], best[j])
        cells.append((there + back) / 2)
    alike = torch.stack([slow.invariance(seen[i].whole, seen[j].whole) for i, j in pairs]).mean()
    spread = [config.variance * slow.variance(x.whole) + config.covariance * slow.covariance(x.whole) for x in seen]
    whole = config.invariance * alike + torch.stack(spread).mean()

    losses = method(batch)
    torch.testing.assert_close(losses.terms["cells"], 0.25 * torch.stack(cells).mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.terms["whole"], 0.75 * whole)
    losses.total().backward()
    (0.75 * whole + 0.25 * torch.stack(cells).mean()).backward()
    for (name, mine), theirs in zip(method.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, name
        apart = (mine.grad - theirs.grad).abs().max() / theirs.grad.abs().max().clamp_min(1)
        assert apart < 1e-6, (name, apart)


def test_cells_apart_weigh_nothing() -> None:
    method, batch = built(replace(CONFIG, location=Overlap())), batch_of(count=4)
    left, right = (Crop.of([ends] * 4) for ends in ([0, 0, 96, 40], [0, 50, 96, 96]))
    views = View(batch.first.images, left), View(batch.second.images, right)
    x, y = (method.query(view.images) for view in views)
    alone = built(only(replace(CONFIG, location=Overlap()), "invariance"))
    assert alone.matched(Overlap(), 5, *views, x, y) == 0 < alone.matched(NearestFeature(), None, *views, x, y)


def test_a_local_view_is_one_whatever_its_size() -> None:
    batch = batch_of(count=4, local_views=1)
    same = batch._replace(locals=(batch.second,))
    few, many = (built(replace(CONFIG, best_local=best)) for best in (1, 5))
    assert few(same).terms["cells"] != many(same).terms["cells"]
