"""MoCo-v2, and dense contrast along a match on top of it: PLM and DenseCL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, final

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from colocate.base.distributed import gather, to_device
from colocate.base.errors import UserError
from colocate.core.objectives import info_nce
from colocate.core.views import Batch, View
from colocate.methods.method import Losses, Method, MethodConfig, Terms
from colocate.methods.rules import MostSimilar, Overlap, Rule
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Features, Momentum, Queue, group_batch_norm, linear, projector


@dataclass(frozen=True)
class MoCoConfig(MethodConfig):
    """MoCo-v2 (match None), or PLM or DenseCL on top of it, by the match."""

    match: Annotated[Overlap | MostSimilar | None, tyro.conf.AvoidSubcommands] = None
    """What pairs the cells of two views; none: whole views are contrasted only."""
    dense: float = 0.5
    """Share of the dense term in the loss (lambda in the paper); 0 without a match. At 1 whole views have no part."""
    both_ways: bool = True
    """Match the cells of either view (PLM), not the query's alone (DenseCL)."""
    align: bool = True
    """A linear layer on matched cells after pooling (A in the PLM paper); DenseCL has none."""
    negatives: Literal["tiles", "cells"] = "tiles"
    """What cells are told from: the mean cells of past tiles (PLM, DenseCL), or the cells of this batch."""
    norm: bool = False
    """Batch norm in the projectors."""
    most_cells: int | None = None
    """Average finer grids to at most so many cells a side before they are contrasted."""
    temperature: float = 0.2
    """Temperature of all InfoNCE terms."""
    queue_length: int = 16_384
    """Past keys kept as negatives, in each queue."""
    momentum: float = 0.999
    """Momentum of the key encoder."""
    hidden: int = 512
    """Hidden width of the projectors."""
    width: int = 128
    """Output width of the projectors."""
    norm_group: int = 64
    """Batch norm takes its statistics over groups of so many views on each device."""

    def __post_init__(self) -> None:
        if not 0 <= self.dense <= 1:
            raise UserError(f"method.dense is a share between 0 and 1, not {self.dense}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"method.momentum must lie in [0, 1), not {self.momentum}")
        if self.match is None and self.dense == 1:
            raise UserError("method.dense 1 leaves nothing to learn from without a match (--method.match)")
        if self.match is not None and self.align and not self.both_ways:
            raise UserError(
                "method.align learns from matched queries, which come with --method.both-ways: "
                "give both, or leave the linear layer out (--method.no-align)"
            )
        positive = (self.temperature, self.queue_length, self.hidden, self.width, self.most_cells or 1)
        if min(positive) <= 0 or self.norm_group < 2:
            raise UserError(
                "method: temperature, queue_length, hidden, width and most_cells must be positive, norm_group 2 or more"
            )

    @property
    def terms(self) -> Terms:
        """What it is made of."""
        if self.match is None:
            return Terms("InfoNCE + queue", "none", "none")
        weighted = ", weighted" if isinstance(self.match, Overlap) and self.match.weighted else ""
        sides = "" if self.both_ways else ", query side"
        whole = "InfoNCE + queue" if self.dense < 1 else "none"
        told_from = "queue" if self.negatives == "tiles" else "the batch's cells"
        return Terms(whole, f"InfoNCE + {told_from}{weighted}{sides}", self.match.words)

    def filling(self, batch: int) -> int:
        """A batch of keys a forward pass, of whole views and of mean cells alike."""
        has_queue = self.dense < 1 or self.negatives == "tiles"
        return -(-self.queue_length // batch) if has_queue else 0

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> MoCo:
        """The method around a backbone; `forwards_per_step` is how many batches one optimiser step gathers."""
        group_batch_norm(backbone, self.norm_group)
        sizes = (backbone.channels, self.hidden, self.width)
        encoder = Encoder(
            backbone,
            whole=projector(*sizes, norm=self.norm) if self.dense < 1 else nn.Identity(),
            cells=projector(*sizes, norm=self.norm) if self.match is not None else None,
            align=linear(self.width, self.width) if self.match is not None and self.align else None,
            most_cells=self.most_cells,
        )
        return MoCo(
            encoder,
            self.match,
            dense=self.dense if self.match is not None else 0.0,
            both_ways=self.both_ways,
            negatives=self.negatives,
            temperature=self.temperature,
            width=self.width,
            queue_length=self.queue_length,
            # The key encoder follows at every forward; over a whole step it shall have moved by `momentum` once.
            momentum=self.momentum ** (1 / forwards_per_step),
        )


class Contrast(NamedTuple):
    """The unweighted terms of a MoCo step, and the features of the first and second views."""

    whole: Float[Tensor, ""] | None
    cells: Float[Tensor, ""] | None
    query: Features
    key: Features


class Pairs(NamedTuple):
    """r pairs of cells to be contrasted, and how much each counts."""

    queries: Float[Tensor, "r d"]
    keys: Float[Tensor, "r d"]
    weight: Float[Tensor, " r"]

    @staticmethod
    def stacked(*pairs: Pairs) -> Pairs:
        """All of them, one after the other."""
        return Pairs(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))


@final
class MoCo(Method):
    """MoCo-v2 (arXiv:2003.04297); with a match, dense contrast as well (PLM: arXiv:2212.12105, DenseCL: 2011.09157).

    b tiles, n cells a view, d projection width. Local views, where a batch has them, are queries too.
    """

    def __init__(
        self,
        encoder: Encoder,
        match: Rule | None,
        *,
        dense: float,
        both_ways: bool,
        negatives: Literal["tiles", "cells"] = "tiles",
        temperature: float,
        width: int,
        queue_length: int,
        momentum: float,
    ) -> None:
        super().__init__()
        self.query = encoder
        self.key = Momentum(encoder, momentum)
        self.match = match
        self.dense = dense
        self.both_ways = both_ways
        self.temperature = temperature
        self.past_wholes = Queue(queue_length, width) if dense < 1 else None
        self.past_cells = None if match is None or negatives == "cells" else Queue(queue_length, width)

    def forward(self, batch: Batch) -> Losses:
        whole, cells, q, k = self.contrast(batch)
        terms = {}
        if whole is not None:
            terms["whole"] = (1 - self.dense) * whole
        if cells is not None:
            terms["cells"] = self.dense * cells
        return Losses(terms, q, k)

    def contrast(self, batch: Batch) -> Contrast:
        """Both terms before they are weighted; the key encoder and the queues move on."""
        views = (batch.first, *batch.locals)
        queries: list[Features] = [self.query(view.images) for view in views]
        with torch.no_grad():
            self.key.follow(self.query)
            k: Features = self.key(batch.second.images)
        whole, cells = None, None
        if self.past_wholes is not None:
            own, other = torch.cat([q.whole for q in queries]), k.whole.repeat(len(views), 1)
            whole = info_nce(own, other, self.past_wholes.vectors, temperature=self.temperature)
            self.past_wholes.push(k.whole)
        if self.match is not None and k.cells is not None:
            pairs = [self.pair(self.match, view, batch.second, q, k) for view, q in zip(views, queries, strict=True)]
            if self.past_cells is None:
                cells = self.contrast_cells(pairs, gather(k.cells).flatten(0, 1))
            else:
                cells = self.contrast_cells(pairs, self.past_cells.vectors)
                self.past_cells.push(k.cells.mean(1))  # pooled, then normalised
        return Contrast(whole, cells, queries[0], k)

    def pair(self, match: Rule, own: View, other: View, q: Features, k: Features) -> Pairs:
        """Every cell of the query view against its partner among the keys and, with `both_ways`, the reverse."""
        assert q.cells is not None and k.cells is not None
        there = match(own, other, q, k)
        with torch.no_grad():
            partners = _aligned(self.key.encoder, there.pool(k.cells))
        pairs = Pairs(q.cells.flatten(0, 1), partners.flatten(0, 1), there.weight.flatten())
        if not self.both_ways:
            return pairs
        back = match(other, own, k, q)
        partners = _aligned(self.query, back.pool(q.cells))
        return Pairs.stacked(pairs, Pairs(partners.flatten(0, 1), k.cells.flatten(0, 1), back.weight.flatten()))

    def contrast_cells(self, pairs: list[Pairs], negatives: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        """InfoNCE in one pass: the mean over pairs of cells of weight x loss, each pair of views counting the same."""
        count = len(pairs[0].weight)
        scaled = [some._replace(weight=some.weight * (count / len(some.weight) / len(pairs))) for some in pairs]
        queries, keys, weight = Pairs.stacked(*scaled)
        # Cells that the other view never saw need no row. Crops, so weights too, are on the host: no synchronisation.
        if weight.device.type == "cpu":
            seen = weight.nonzero().squeeze(1)
            rows = to_device(seen, queries.device)
            queries, keys, weight = queries[rows], keys[rows], weight[seen]
        weight = to_device(weight, queries.device)
        return info_nce(queries, keys, negatives, weight, temperature=self.temperature, count=count)


def _aligned(encoder: Encoder, partners: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    return partners if encoder.align is None else encoder.align(partners)
