"""Concepts: k-means, clusters carried into views and prototypes, against plain loops, and by laws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colocate.core.geometry import Crop, bounding_box
from colocate.core.matching import overlap
from colocate.methods.concl import k_means, prototypes
from tests.reference import concl as slow
from tests.reference.overlap import cell_boxes, shared_area
from tests.strategies import crop_pairs, grids

SURE = 1e-5  # ours is float32: where the loops decided by less, it may decide otherwise
SEEDS = range(6)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _repeating(seed: int, b: int, m: int, c: int = 8) -> Tensor:
    """Points of which each appears thrice on average, of unit length, coordinates multiples of 1 / 64.

    Products of such points are exact in float32, whatever the order of the sum: equal centres tie exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    points = torch.eye(c)[torch.randint(c, (b, m // 3), generator=generator)]
    for tile in range(b):
        for i in range(m // 3):
            for _ in range(6):
                some = torch.randperm(c, generator=generator)[:4]
                points[tile, i, some] = hadamard @ points[tile, i, some]
    drawn = torch.randint(m // 3, (b, m), generator=generator)
    return points.gather(1, drawn[:, :, None].expand(-1, -1, c)).double()


def _check(points: Tensor, clusters: int, iterations: int) -> slow.KMeans | None:
    """Ours and the oracle's torch version equal the loops, unless those were unsure."""
    loops = slow.k_means(points, clusters, iterations)
    if loops.margin < SURE:
        return None
    assert torch.equal(k_means(points, clusters, iterations), loops.cluster)
    assert torch.equal(slow.k_means_loop(points, clusters, iterations), loops.cluster)
    return loops


@pytest.mark.parametrize("shape", [(3, 20, 4), (2, 49, 16), (1, 5, 2), (4, 9, 3)], ids=str)
@pytest.mark.parametrize("clusters", [1, 2, 5])
@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_k_means_equals_the_loops(shape: tuple[int, int, int], clusters: int, iterations: int) -> None:
    checked = [_check(_random(seed, *shape), clusters, iterations) for seed in SEEDS]
    assert sum(found is not None for found in checked) > len(SEEDS) / 2


@pytest.mark.parametrize("clusters", [5, 8])
def test_empty_clusters_take_the_points_that_fit_worst(clusters: int) -> None:
    """Repeated points make equal centres, of which all but the first are empty."""
    checked = [_check(_repeating(seed, 1, 24), clusters, 5) for seed in range(20)]
    assert sum(found is not None and found.empty > 1 for found in checked) >= 5


def test_the_first_empty_cluster_takes_the_worst_point_and_the_second_the_next() -> None:
    """Four centres start at the same point; the three empty ones take the outliers, the farthest first."""
    here, near, far, opposite = [4.0, 0, 0], [3.0, 1.5, 0], [1.0, 0, 2.0], [-2.0, 0.5, 0]
    points = torch.tensor([[near, here, far, here, opposite, here, here, here]], dtype=torch.float64)
    assert k_means(points, 4, iterations=0).tolist() == [[0] * 8]
    assert k_means(points, 4, iterations=1).tolist() == [[3, 0, 2, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize(("m", "clusters"), [(26, 11), (28, 23), (196, 8), (7, 7)])
def test_centres_start_evenly_spaced(m: int, clusters: int) -> None:
    """The points of the starting centres are those number floor((i + 0.5) m / k), one a cluster."""
    start = [(2 * i + 1) * m // (2 * clusters) for i in range(clusters)]
    found = k_means(_random(0, 1, m, 8), clusters, iterations=0)
    assert found[0, start].tolist() == list(range(clusters))


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_separate_groups_are_found(precision: str) -> None:
    """Three bundles of directions a few degrees wide, a few degrees apart, shuffled: mixed precision finds them too."""
    generator = torch.Generator().manual_seed(0)
    bundles = torch.tensor([10.0, 0, 0, 0]) + 0.5 * torch.eye(4)[1:]
    group = torch.stack([torch.randperm(30, generator=generator) % 3 for _ in range(6)])
    points = bundles[group] + 0.02 * torch.randn(6, 30, 4, generator=generator)
    points *= torch.rand(6, 30, 1, generator=generator) + 0.5  # length means nothing
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32"):
        found = k_means(points, 3)
    for mine, true in zip(found.tolist(), group.tolist(), strict=True):
        assert len(set(zip(mine, true, strict=True))) == len(set(mine)) == 3


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(6, 30), st.integers(2, 8))
def test_a_tile_is_clustered_alone(seed: int, b: int, m: int, c: int) -> None:
    """By the same numbers in any order of tiles, and every time; points' lengths do not matter."""
    points, clusters = _random(seed, b, m, c).float(), 6
    found = k_means(points, clusters)
    assert found.dtype == torch.long and bool(((found >= 0) & (found < clusters)).all())
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(k_means(points[order], clusters), found[order])
    assert torch.equal(k_means(points, clusters), found)
    assert torch.equal(k_means(4 * points, clusters), found)


def test_no_more_clusters_than_points() -> None:
    points = _random(0, 2, 5, 3)
    assert [sorted(found) for found in k_means(points, 5).tolist()] == [[0, 1, 2, 3, 4]] * 2
    with pytest.raises(ValueError, match="5 points cannot be 6 clusters"):
        k_means(points, 6)


# Clusters in views --------------------------------------------------------------------------------------------------


def _clusters(seed: int, b: int, m: int, k: int) -> Tensor:
    return torch.randint(k, (b, m), generator=torch.Generator().manual_seed(seed))


def _carried(cluster: Tensor, k: int, reference: Crop, view: Crop, cells: tuple[int, int], grid: int) -> Tensor:
    return overlap(view, reference, cells, grid).pool(F.one_hot(cluster, k).double())


@pytest.mark.slow
@settings(max_examples=20)
@given(crop_pairs(), grids, st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_carried_clusters_and_prototypes_equal_the_loops(
    pair: tuple[Crop, Crop], cells: tuple[int, int], grid: int, k: int, seed: int
) -> None:
    reference = bounding_box(*pair)
    for view in pair:
        cluster = _clusters(seed, len(view.rows), grid**2, k)
        shares = _carried(cluster, k, reference, view, cells, grid)
        loops = slow.carried(cluster, k, (grid, grid), reference, view, cells)
        torch.testing.assert_close(shares, loops, atol=1e-9, rtol=0)
        features = _random(seed, len(view.rows), cells[0] * cells[1], 3)
        mean, covered = slow.prototypes(features, shares)
        ours = prototypes(features, shares)
        torch.testing.assert_close(ours.cells, covered, atol=1e-9, rtol=0)
        shown = covered > 1e-5  # less is a corner's rounding
        torch.testing.assert_close(ours.mean[shown], mean[shown], atol=1e-9, rtol=0)
        assert bool((ours.mean[covered == 0] == 0).all())


@settings(max_examples=20)
@given(crop_pairs(), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_a_concept_covers_in_a_view_what_it_covers_of_the_reference_inside_it(
    pair: tuple[Crop, Crop], cells: int, grid: int, k: int, seed: int
) -> None:
    """Areas on the tile, and no cell belongs to more or less than one concept altogether."""
    reference = bounding_box(*pair)
    for view in pair:
        cluster = _clusters(seed, len(view.rows), grid**2, k)
        shares = _carried(cluster, k, reference, view, (cells, cells), grid)
        torch.testing.assert_close(shares.sum(2), torch.ones_like(shares[:, :, 0]))
        mine = shares.sum(1) * (view.area() / cells**2)[:, None]
        torch.testing.assert_close(mine, _area_inside(cluster, k, reference, view, grid), atol=1e-5, rtol=0)


def _area_inside(cluster: Tensor, k: int, reference: Crop, view: Crop, grid: int) -> Tensor:
    """Of each concept's cells of the reference view, the area inside another view: b x k, in square source pixels."""
    area = torch.zeros(len(cluster), k, dtype=torch.float64)
    for tile, own in enumerate(cluster.tolist()):
        (whole,) = cell_boxes(view, tile, 1, 1)
        for number, box in zip(own, cell_boxes(reference, tile, grid, grid), strict=True):
            area[tile, number] += shared_area(box, whole)
    return area


def test_prototypes_are_weighted_means_and_pass_gradients_by_share() -> None:
    cells = torch.tensor([[[2.0], [4.0], [9.0]]], requires_grad=True)
    shares = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0]]])
    mean, covered = prototypes(cells, shares)
    assert covered.tolist() == [[1.5, 1.0, 0.0]]
    torch.testing.assert_close(mean, torch.tensor([[[4 / 1.5], [6.5], [0.0]]]))
    (gradient,) = torch.autograd.grad(mean[0, 0, 0], cells)
    torch.testing.assert_close(gradient, torch.tensor([[[1 / 1.5], [0.5 / 1.5], [0.0]]]))
