"""What each method of the paper costs beside moco-v2, and ConCL's concepts against a loop over tiles and clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import torch
import torch.nn.functional as F

from benchmarks.timing import Row, compare, in_turns, peak_bytes, ratio
from colocate.core.geometry import Crop, bounding_box
from colocate.core.matching import overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_params, sample_views
from colocate.methods.concl import k_means, prototypes
from colocate.methods.settings import ConCLConfig
from colocate.training.loop import build_method
from colocate.training.optim import build_optimizer
from colocate.training.recipe import Recipe
from colocate.training.recipes import PAPER, colocate, colocate_continue, moco_v2, plm_multicrop, small
from tests.reference import concl as plain_concl

DEVICE, TILES, SIZE, ROUNDS = "cpu", 32, 224, 3
CONCEPTS, ITERATIONS, GRID, CHANNELS, CLUSTERED_TILES = 8, 10, 14, 256, 64
CELLS, WIDTH = 7, 128  # of a view's grid and projected cells


def rows(threads: int) -> list[Row]:
    """The concepts; and every method's step, all in one run, unless on one thread: minutes more, and alike in ratio."""
    return [*(steps(threads) if threads > 1 else []), concepts(threads)]


def steps(threads: int) -> list[Row]:
    """The paper's as they stand, but float32 and a batch of TILES, ConCL's after its warm-up; ours as they stand."""
    paper = [recipe() for recipe in (moco_v2, *(other for other in PAPER if other != moco_v2), plm_multicrop)]
    paper = [replace(recipe, batch=TILES, views=replace(recipe.views, size=SIZE)) for recipe in paper]
    ours = colocate()
    prototypes = replace(ours, name="colocate-continue", method=colocate_continue().method)
    alike = replace(ours, name="moco-v2", method=small(moco_v2()).method)
    found = []
    for made in (paper, [alike, ours, prototypes]):
        ways = [_step(recipe) for recipe in made]
        times = in_turns(ways, threads=threads, rounds=ROUNDS)
        sizes = [peak_bytes(way) for way in ways]
        for number, recipe in enumerate(made[1:], 1):
            cells = f"{recipe.encoder.backbone}, {recipe.batch} tiles of {recipe.views.size} px"
            row = ratio(
                f"whole {recipe.name} step, {cells}",
                "moco-v2's step at the same grid",
                threads,
                [(each[number], each[0]) for each in times],
            )
            found.append(replace(row, ours_bytes=sizes[number], other_bytes=sizes[0], baseline=True))
    return found


def _step(recipe: Recipe) -> Callable[[], object]:
    """Views, networks, losses, backward and optimiser."""
    method = build_method(recipe).to(DEVICE)
    optimizer = build_optimizer(recipe.optim, method)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (recipe.batch, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8).to(DEVICE)
    epoch = count(recipe.method.warmup_epochs if isinstance(recipe.method, ConCLConfig) else 0)

    def step() -> None:
        method(sample_views(tiles, recipe.views, epoch=next(epoch))).total().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def concepts(threads: int) -> Row:
    """k-means of reference views, their clusters carried into both views, the prototypes and the gradient to cells."""
    generator = torch.Generator().manual_seed(0)
    sizes, index = torch.tensor([SIZE, SIZE]).expand(CLUSTERED_TILES, 2), torch.arange(CLUSTERED_TILES)
    views = [sample_params(ViewConfig(), sizes, index, 0, 0, view).crop for view in (0, 1)]
    reference = bounding_box(views[0], views[1])
    points = torch.randn(CLUSTERED_TILES, GRID**2, CHANNELS, generator=generator).relu().to(DEVICE)
    cells = [torch.randn(CLUSTERED_TILES, CELLS**2, WIDTH, generator=generator).to(DEVICE) for _ in views]
    cells[0].requires_grad_()

    def ours() -> None:
        clusters = F.one_hot(k_means(points, CONCEPTS, ITERATIONS), CONCEPTS).float()
        shares = [overlap(view, reference, CELLS, GRID).pool(clusters) for view in views]
        mine, _ = (prototypes(each, share) for each, share in zip(cells, shares, strict=True))
        torch.autograd.grad(mine.mean.sum(), cells[0])

    places = [_place(view, reference) for view in views]
    flips = [view.cols[:, 0] > view.cols[:, 1] for view in views]

    def theirs() -> None:
        cluster = plain_concl.k_means_loop(points, CONCEPTS, ITERATIONS).unflatten(1, (GRID, GRID))
        shown = [plain_concl.rounded_loop(cluster, *view, CELLS) for view in zip(places, flips, strict=True)]
        mine, _ = plain_concl.prototypes_loop(cells[0], shown[0], cells[1], shown[1])
        torch.autograd.grad(mine.sum(), cells[0])

    return compare(
        f"{CONCEPTS} concepts each of {CLUSTERED_TILES} tiles: {GRID} x {GRID} cells of {CHANNELS} channels clustered "
        f"in {ITERATIONS} iterations, carried into two views, averaged",
        ours,
        theirs,
        other_name="a loop over tiles and clusters",
        threads=threads,
        goal_faster=5,
    )


def _place(view: Crop, reference: Crop) -> torch.Tensor:
    """(top, left, bottom, right) of each view as fractions of its upright reference view."""
    ends = []
    for axis, whole in ((view.rows, reference.rows), (view.cols, reference.cols)):
        low, high = whole[:, :1], whole[:, 1:]
        ends.append((torch.stack([axis.amin(1), axis.amax(1)], 1) - low) / (high - low))
    return torch.stack(ends, 2).flatten(1)
