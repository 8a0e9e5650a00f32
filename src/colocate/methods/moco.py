"""MoCo-v2, and dense contrast along a match on top of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from ..backbones import Backbone
from ..errors import UserError
from ..matching import overlap
from ..networks import Encoder, Features, Momentum, Queue, group_batch_norm
from ..objectives import info_nce
from ..views import Batch
from .method import Losses, Method


@dataclass(frozen=True)
class Overlap:
    """Precise location matching: cells are paired by the exact tissue area they share."""

    rule: Annotated[Literal["overlap"], tyro.conf.Suppress] = "overlap"


@dataclass(frozen=True)
class MoCoConfig:
    """MoCo-v2 (match None), or PLM on top of it."""

    match: Annotated[Overlap | None, tyro.conf.Suppress] = None
    """What pairs the cells of two views; none: whole views are contrasted only."""
    dense: float = 0.5
    """Share of the dense term in the loss (lambda in the paper); 0 without a match."""
    temperature: float = 0.2
    """Temperature of both InfoNCE terms."""
    queue_length: int = 16_384
    """Past keys kept as negatives, in each of the two queues."""
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
        if min(self.temperature, self.queue_length, self.hidden, self.width) <= 0 or self.norm_group < 2:
            raise UserError(
                "method: temperature, queue_length, hidden and width must be positive, norm_group 2 or more"
            )

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> MoCo:
        """The method around a backbone; `forwards_per_step` is how many batches one optimiser step gathers."""
        matched = self.match is not None
        group_batch_norm(backbone, self.norm_group)
        encoder = Encoder(backbone, backbone.channels, self.hidden, self.width, dense=matched)
        return MoCo(
            encoder,
            dense=self.dense if matched else 0.0,
            temperature=self.temperature,
            queue_length=self.queue_length,
            # The key encoder follows at every forward; over a whole step it shall have moved by `momentum` once.
            momentum=self.momentum ** (1 / forwards_per_step),
        )


@final
class MoCo(Method):
    """MoCo-v2 (arXiv:2003.04297); with `dense` > 0, dense contrast of matched cells as well (PLM: arXiv:2212.12105).

    b tiles, n cells a view, d projection width. An encoder without a cell projector makes it plain MoCo-v2.
    """

    def __init__(self, encoder: Encoder, dense: float, temperature: float, queue_length: int, momentum: float) -> None:
        super().__init__()
        self.query = encoder
        self.key = Momentum(encoder, momentum)
        self.dense = dense
        self.temperature = temperature
        self.past_wholes = Queue(queue_length, encoder.width)
        self.past_cells = None if encoder.cells is None else Queue(queue_length, encoder.width)

    def forward(self, batch: Batch) -> Losses:
        q: Features = self.query(batch.first.images)
        with torch.no_grad():
            self.key.follow(self.query)
            k: Features = self.key(batch.second.images)
        whole = info_nce(q.whole, k.whole, self.past_wholes.vectors, temperature=self.temperature)
        cells = None
        if self.past_cells is not None and k.cells is not None:
            cells = self.dense * self.contrast_cells(q, k, batch, self.past_cells.vectors)
            self.past_cells.push(k.cells.mean(1))  # pooled, then normalised
        self.past_wholes.push(k.whole)
        return Losses((1 - self.dense) * whole, cells, q, k)

    def contrast_cells(
        self, q: Features, k: Features, batch: Batch, negatives: Float[Tensor, "m d"]
    ) -> Float[Tensor, ""]:
        """Both directions at once: every cell of one view against its match in the other, weighted by shared area."""
        assert q.cells is not None and k.cells is not None
        assert self.query.align is not None and self.key.encoder.align is not None
        there = overlap(batch.first.crop, batch.second.crop, q.grid, k.grid)
        back = overlap(batch.second.crop, batch.first.crop, k.grid, q.grid)
        with torch.no_grad():
            matched_keys = self.key.encoder.align(there.pool(k.cells))
        matched_queries = self.query.align(back.pool(q.cells))
        queries = torch.cat([q.cells.flatten(0, 1), matched_queries.flatten(0, 1)])  # 2bn d
        keys = torch.cat([matched_keys.flatten(0, 1), k.cells.flatten(0, 1)])
        weight = torch.cat([there.weight.flatten(), back.weight.flatten()])
        # Cells that the other view never saw need no row. Crops, so weights too, are on the host: no synchronisation.
        seen = weight.nonzero().squeeze(1)
        rows = seen.to(queries.device, non_blocking=True)
        return info_nce(
            queries[rows],
            keys[rows],
            negatives,
            weight[seen].to(queries.device, non_blocking=True),
            temperature=self.temperature,
            count=len(weight),
        )
