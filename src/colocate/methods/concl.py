"""ConCL: contrast of concepts, clusters of a tile's cells; with overlap matching of cells beside it, PLM's."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from colocate.base.distributed import as_in_first, gather, world
from colocate.base.errors import UserError
from colocate.core.matching import overlap
from colocate.core.objectives import info_nce
from colocate.core.views import Batch, View
from colocate.methods import moco
from colocate.methods.method import Losses, Method
from colocate.methods.moco import MoCo
from colocate.methods.settings import ConCLConfig
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Features, Queue


@torch.no_grad()
def k_means(points: Float[Tensor, "b m c"], clusters: int, iterations: int = 10) -> Int[Tensor, "b m"]:
    """The cluster of each of m points, b sets at once: k-means by cosine similarity.

    Centres start at points evenly spaced in order, so nothing is random. A cluster without points goes to the point
    that fits its own centre worst (the next empty one to the next worst). There is no loop over sets or clusters, and
    the host waits for nothing.

    Raises:
        ValueError: fewer points than clusters.

    >>> k_means(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 2.0]]]), clusters=2)
    tensor([[0, 0, 1, 1]])
    """
    m = points.shape[1]
    if m < clusters:
        raise ValueError(f"{m} points cannot be {clusters} clusters")
    points = F.normalize(points.float(), dim=2)
    spaced = (2 * torch.arange(clusters, device=points.device) + 1) * m // (2 * clusters)
    centres = points[:, spaced]  # b k c
    with torch.autocast(points.device.type, enabled=False):  # cells of one tile differ by less than bfloat16 rounds
        for _ in range(iterations):
            similarity, cluster = (points @ centres.mT).max(2)  # b m
            members = F.one_hot(cluster, clusters).to(points)  # b m k
            empty = members.sum(1) == 0  # b k
            worst = similarity.topk(clusters, largest=False).indices  # b k
            turn = (empty.cumsum(1) - 1).clamp_min(0)
            seeds = points.gather(1, worst.gather(1, turn)[:, :, None].expand_as(centres))
            centres = F.normalize(torch.where(empty[:, :, None], seeds, members.mT @ points), dim=2)
        return (points @ centres.mT).argmax(2)


class Prototypes(NamedTuple):
    """Mean features of b tiles' k concepts, and how many cells' worth of the view each covers."""

    mean: Float[Tensor, "b k d"]
    cells: Float[Tensor, "b k"]


def prototypes(cells: Float[Tensor, "b n d"], shares: Float[Tensor, "b n k"]) -> Prototypes:
    """The cells' features averaged by each cell's share of each concept (ConCL, arXiv:2207.06733); zero where none."""
    shares = shares.to(cells)
    covered = shares.sum(1)
    return Prototypes(shares.mT @ cells / covered.clamp_min(1e-6)[:, :, None], covered)


LEAST_CELLS = 0.5  # cells' worth of a view that a concept must cover there, or its prototype is but a neighbour's


@final
class ConCL(Method):
    """ConCL (arXiv:2207.06733): prototypes of the concepts that both views of a tile show, against past ones.

    Concepts are k-means clusters of a reference view (the bounding box of both crops) on the grid of the key
    backbone's last stage but one; they are carried into each view by exact shared area, not by rounding to cells.
    A prototype, a mean of the backbone's features, is projected as the mean of a whole view is.
    b tiles, k concepts, n cells a view, d projection width.
    """

    def __init__(self, moco: MoCo, config: ConCLConfig) -> None:
        super().__init__()
        self.moco = moco
        self.config = config
        self.past_prototypes = Queue(config.moco.queue_length, config.moco.width)

    @property
    def query(self) -> Encoder:  # type: ignore[override]
        """The encoder that learns."""
        return self.moco.query

    def forward(self, batch: Batch) -> Losses:
        if batch.reference is None:
            raise UserError("concl clusters a reference view: switch it on with --views.reference")
        whole, cells, q, k = self.moco.contrast(batch)
        assert whole is not None
        warming = batch.epoch < self.config.warmup_epochs
        dense = 0.0 if warming else self.moco.dense
        # A term that does not count yet still gives its parameters a gradient, zero: DDP wants one.
        terms = {"whole": (1 if warming else 0) * whole}
        if cells is not None:
            terms["cells"] = dense * cells
        if warming:
            terms["concepts"] = torch.zeros_like(whole)
        else:
            terms["concepts"] = (1 - dense) * self.contrast_concepts(batch, batch.reference, q, k)
        return Losses(terms, q, k)

    def contrast_concepts(self, batch: Batch, reference: View, q: Features, k: Features) -> Float[Tensor, ""]:
        """InfoNCE of the prototypes that both views show: the mean over all of them, on all processes."""
        clusters, grid = self.cluster(reference)
        mine, theirs = (
            carried(clusters, grid, reference, view, features)
            for view, features in ((batch.first, q), (batch.second, k))
        )
        queries = self.query.whole(mine.mean.flatten(0, 1))
        with torch.no_grad():
            keys = self.moco.key.encoder.whole(theirs.mean.flatten(0, 1))
        shown = (torch.minimum(mine.cells, theirs.cells) >= LEAST_CELLS).flatten()
        everywhere = gather(shown.sum()[None]).sum().clamp_min(1)
        loss = info_nce(
            queries,
            keys,
            self.past_prototypes.vectors,
            shown / everywhere * world()[1],
            temperature=self.moco.temperature,
            count=1,
        )
        self.past_prototypes.push(keys, shown)
        return loss

    @torch.no_grad()
    def cluster(self, reference: View) -> tuple[Float[Tensor, "b m k"], tuple[int, int]]:
        """The concept of each of the reference view's m cells, one-hot, and the rows and columns of its grid."""
        backbone = self.moco.key.encoder.backbone
        assert isinstance(backbone, Backbone)
        as_in_first(backbone)  # whose state is what a checkpoint holds
        training = backbone.training
        backbone.eval()  # statistics as they stand: plain tiles must not move them
        grid = backbone.last_but_one(reference.images)
        backbone.train(training)
        rows, cols = grid.shape[2:]
        if rows * cols < self.config.concepts:
            raise UserError(f"a reference view of {rows} x {cols} cells cannot be {self.config.concepts} concepts")
        cluster = k_means(grid.flatten(2).mT, self.config.concepts, self.config.iterations)
        return F.one_hot(cluster, self.config.concepts).float(), (rows, cols)


def carried(
    clusters: Float[Tensor, "b m k"], grid: tuple[int, int], reference: View, view: View, features: Features
) -> Prototypes:
    """The prototypes that a view shows of the reference view's clusters: mean features of the backbone."""
    shares = overlap(view.crop, reference.crop, features.grid, grid).pool(clusters)
    return prototypes(features.field, shares)


def build(config: ConCLConfig, backbone: Backbone, forwards_per_step: int = 1) -> ConCL:
    """The method around a backbone; `forwards_per_step` is how many batches one optimiser step gathers.

    Raises:
        UserError: cells of an earlier stage than the one that is clustered, which would learn nothing.
    """
    clustered = backbone.strides_of_stages[-2]
    if backbone.cell_stride is not None and backbone.stride < clustered:
        raise UserError(
            f"concl clusters the stage of stride {clustered}, which learns nothing with --cell-stride "
            f"{backbone.cell_stride}: give {clustered}, or leave it out"
        )
    return ConCL(moco.build(config.moco, backbone, forwards_per_step), config)
