"""VICRegL: no negatives, but variance and covariance of features; with overlap in place of nearest centres, PLM's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, final

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from colocate.base.distributed import gather_with_gradient, to_device
from colocate.base.errors import UserError
from colocate.core.objectives import vicreg_covariance, vicreg_invariance, vicreg_variance
from colocate.core.views import Batch, View
from colocate.methods.method import Losses, Method, MethodConfig, Terms
from colocate.methods.rules import NearestCentre, NearestFeature, Overlap, Rule
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Expander, Features


@dataclass(frozen=True)
class VICRegLConfig(MethodConfig):
    """VICRegL: cells paired by nearest feature, and by place."""

    location: Annotated[NearestCentre | Overlap, tyro.conf.AvoidSubcommands] = field(default_factory=NearestCentre)
    """What pairs cells by place: the nearest centre (VICRegL) or the tissue they share (PLM)."""
    alpha: float = 0.75
    """Share of the whole term in the loss."""
    invariance: float = 25.0
    """Coefficient of the squared differences between partners."""
    variance: float = 25.0
    """Coefficient of the variance term."""
    covariance: float = 1.0
    """Coefficient of the covariance term."""
    best: int = 20
    """Cells of a whole view that are compared by place: the best matched."""
    best_local: int = 4
    """The same of a local view."""
    width: int = 2048
    """Width of the expander of whole views (8,192 for a ResNet-50)."""
    cells_width: int = 512
    """Width of the expander of cells."""
    most_cells: int | None = None
    """Average finer grids to at most so many cells a side before they are compared."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"method.alpha is a share between 0 and 1, not {self.alpha}")
        if min(self.invariance, self.variance, self.covariance) < 0:
            raise UserError("method: invariance, variance and covariance must not be negative")
        if min(self.best, self.best_local, self.width, self.cells_width, self.most_cells or 1) < 1:
            raise UserError("method: best, best_local, width, cells_width and most_cells must be 1 or more")

    @property
    def terms(self) -> Terms:
        """What it is made of."""
        weighted = ", weighted" if isinstance(self.location, Overlap) and self.location.weighted else ""
        matching = f"{NearestFeature.words}; {self.location.words}, best {self.best}"
        return Terms("VICReg", f"VICReg on cell pairs{weighted}", matching)

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> VICRegL:
        """The method around a backbone; nothing in it counts forwards."""
        whole, cells = (Expander(backbone.channels, width) for width in (self.width, self.cells_width))
        return VICRegL(Encoder(backbone, whole, cells, most_cells=self.most_cells), self)


@final
class VICRegL(Method):
    """VICRegL (arXiv:2210.01571); with `location` an overlap, its cells are PLM's (arXiv:2212.12105).

    b tiles, k cell pairs a tile, d expanded width. Every two views of a tile, of which at least one is whole, are
    compared; cells are matched from either side.
    """

    def __init__(self, encoder: Encoder, config: VICRegLConfig) -> None:
        super().__init__()
        self.query = encoder
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        if len(batch.tiles) < 2:
            raise UserError("vicregl compares the tiles of a batch: give a batch of 2 or more tiles a device")
        views = (batch.first, batch.second, *batch.locals)
        seen: list[Features] = [self.query(view.images) for view in views]
        pairs = [(i, j) for i in (0, 1) for j in range(i + 1, len(views))]
        alike = torch.stack([vicreg_invariance(seen[i].whole, seen[j].whole) for i, j in pairs]).mean()
        whole = self.config.invariance * alike + torch.stack([self.spread(x.whole) for x in seen]).mean()
        cells = torch.stack([self.compare_cells(views[i], views[j], seen[i], seen[j]) for i, j in pairs]).mean()
        alpha = self.config.alpha
        return Losses({"whole": alpha * whole, "cells": (1 - alpha) * cells}, seen[0], seen[1])

    def compare_cells(self, first: View, second: View, x: Features, y: Features) -> Float[Tensor, ""]:
        """The local term of two views: all cells with their nearest features, the best ones by place; from both sides.

        The two directions are averaged, the two ways of matching added up.
        """
        there, back = (first, second, x, y), (second, first, y, x)
        best, local = self.config.best, first.images.shape != second.images.shape
        terms = [self.matched(NearestFeature(), None, *side) for side in (there, back)]
        terms += [self.matched(self.config.location, best, *there)]
        terms += [self.matched(self.config.location, self.config.best_local if local else best, *back)]
        return torch.stack(terms).sum() / 2

    def matched(
        self, rule: Rule, best: int | None, own: View, other: View, mine: Features, theirs: Features
    ) -> Float[Tensor, ""]:
        """VICReg of `own`'s cells and their partners: all of them, or the `best` matched."""
        assert mine.cells is not None and theirs.cells is not None
        match = rule(own, other, mine, theirs)
        cells, partners = mine.cells, match.pool(theirs.cells)
        weight = match.weight
        if best is not None:
            chosen = match.best(best)
            weight = weight.gather(1, chosen)
            chosen = to_device(chosen, cells.device)
            cells, partners = _chosen(cells, chosen), _chosen(partners, chosen)
        weight = to_device(weight, cells.device)
        # A cell that the other view never saw has no partner: its own twin keeps variance and covariance what they are.
        partners = torch.where(weight[:, :, None] > 0, partners, cells)
        return (
            self.config.invariance * vicreg_invariance(cells, partners, weight)
            + (self.spread(cells) + self.spread(partners)) / 2
        )

    def spread(self, x: Float[Tensor, "b *k d"]) -> Float[Tensor, ""]:
        """The variance and covariance terms of one side, over the batches of all processes."""
        x = gather_with_gradient(x)
        return self.config.variance * vicreg_variance(x) + self.config.covariance * vicreg_covariance(x)


def _chosen(cells: Float[Tensor, "b n d"], chosen: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    return cells.gather(1, chosen[:, :, None].expand(-1, -1, cells.shape[2]))
