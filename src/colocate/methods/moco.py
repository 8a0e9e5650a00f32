"""MoCo-v2, and dense contrast along a match on top of it: PLM and DenseCL."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from colocate.base.distributed import gather, to_device
from colocate.core.objectives import info_nce
from colocate.core.views import Batch, View
from colocate.methods.method import Losses, Method
from colocate.methods.rules import Rule
from colocate.methods.settings import MoCoConfig
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Features, Momentum, Queue, group_batch_norm, linear, projector


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

    def __init__(self, encoder: Encoder, config: MoCoConfig, momentum: float) -> None:
        super().__init__()
        self.query = encoder
        self.key = Momentum(encoder, momentum)
        self.match, self.both_ways, self.temperature = config.match, config.both_ways, config.temperature
        self.dense = config.dense if config.match is not None else 0.0
        self.past_wholes = Queue(config.queue_length, config.width) if self.dense < 1 else None
        has_past_cells = config.match is not None and config.negatives == "tiles"
        self.past_cells = Queue(config.queue_length, config.width) if has_past_cells else None

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


def build(config: MoCoConfig, backbone: Backbone, forwards_per_step: int = 1) -> MoCo:
    """The method around a backbone; `forwards_per_step` is how many batches one optimiser step gathers."""
    group_batch_norm(backbone, config.norm_group)
    sizes = (backbone.channels, config.hidden, config.width)
    encoder = Encoder(
        backbone,
        whole=projector(*sizes, norm=config.norm) if config.dense < 1 else nn.Identity(),
        cells=projector(*sizes, norm=config.norm) if config.match is not None else None,
        align=linear(config.width, config.width) if config.match is not None and config.align else None,
        most_cells=config.most_cells,
    )
    # The key encoder follows at every forward; over a whole step it shall have moved by `momentum` once.
    return MoCo(encoder, config, config.momentum ** (1 / forwards_per_step))
