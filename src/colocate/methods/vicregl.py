"""VICRegL: no negatives, but variance and covariance of features; with overlap in place of nearest centres, PLM's."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from colocate.base.distributed import gather_with_gradient, to_device
from colocate.base.errors import UserError
from colocate.core.objectives import vicreg_covariance, vicreg_invariance, vicreg_variance
from colocate.core.views import Batch, View
from colocate.methods.method import Losses, Method
from colocate.methods.rules import NearestFeature, Rule
from colocate.methods.settings import VICRegLConfig
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Expander, Features


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
            raise UserError("vicregl compares the tiles of a batch: give a batch of 2 or more tiles per device")
        views = (batch.first, batch.second, *batch.locals)
        seen: list[Features] = [self.query(view.images) for view in views]
        pairs = [(i, j) for i in (0, 1) for j in range(i + 1, len(views))]
        alike = torch.stack([vicreg_invariance(seen[i].whole, seen[j].whole) for i, j in pairs]).mean()
        whole = self.config.invariance * alike + torch.stack([self.spread(x.whole) for x in seen]).mean()
        cells = torch.stack([self.compare_cells(views[i], views[j], seen[i], seen[j], j > 1) for i, j in pairs]).mean()
        alpha = self.config.alpha
        return Losses({"whole": alpha * whole, "cells": (1 - alpha) * cells}, seen[0], seen[1])

    def compare_cells(self, first: View, second: View, x: Features, y: Features, local: bool) -> Float[Tensor, ""]:
        """The local term of two views: all cells with their nearest features, the best ones by place; from both sides.
        `local`: the second is a small view.

        The two directions are averaged, the two ways of matching added up.
        """
        there, back = (first, second, x, y), (second, first, y, x)
        best = self.config.best
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
            where = to_device(chosen, cells.device)[:, :, None]
            cells, partners = cells.take_along_dim(where, 1), partners.take_along_dim(where, 1)
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


def build(config: VICRegLConfig, backbone: Backbone, forwards_per_step: int = 1) -> VICRegL:
    """The method around a backbone; nothing in it counts forwards."""
    whole, cells = (Expander(backbone.channels, width) for width in (config.width, config.cells_width))
    return VICRegL(Encoder(backbone, whole, cells, most_cells=config.most_cells), config)
