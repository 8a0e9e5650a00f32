"""A whole step of PLM on MoCo-v2, written plainly: nothing fused, batched over cells, or laid out for speed.

Source: arXiv:2212.12105, section 3, on arXiv:1911.05722, algorithm 1: S of every pair of cells, logits written out,
the key encoder moved parameter by parameter, SGD with momentum 0.9 and weight decay 1e-4 on every weight.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from colocate.core.geometry import Crop
from colocate.methods.moco import MoCo

from .info_nce import info_nce
from .overlap import overlap_matrix_batched, pooled_batched


class PlainStep:
    """Starts from a method's weights and queues; batch norm takes a whole batch, so shuffling would change nothing."""

    def __init__(self, method: MoCo, lr: float) -> None:
        assert method.past_cells is not None
        self.query = copy.deepcopy(method.query).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self.key = copy.deepcopy(method.key.encoder).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self.momentum, self.dense, self.temperature = method.key.momentum, method.dense, method.temperature
        self.wholes, self.cells = (q.vectors.clone() for q in (method.past_wholes, method.past_cells))
        self.fresh = not bool(method.past_wholes.used)
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), lr, momentum=0.9, weight_decay=1e-4, foreach=False, fused=False
        )

    def __call__(self, first: Tensor, second: Tensor, own: Crop, other: Crop) -> Tensor:
        """One optimiser step on b x 3 x s x s views and where they were cut; returns the loss."""
        q = self.query(first.contiguous())
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.data = slow.data * self.momentum + fast.data * (1 - self.momentum)
            k = self.key(second.contiguous())
        whole = info_nce(q.whole, k.whole, self.wholes, temperature=self.temperature)

        seen, partners = pooled_batched(overlap_matrix_batched(own, other, q.grid[0]).to(k.cells), k.cells)
        seen_back, partners_back = pooled_batched(overlap_matrix_batched(other, own, q.grid[0]).to(q.cells), q.cells)
        with torch.no_grad():
            partners = self.key.align(partners)  # type: ignore[misc]
        queries = torch.cat([q.cells, self.query.align(partners_back)])  # type: ignore[misc]
        keys, weight = torch.cat([partners, k.cells]), torch.cat([seen, seen_back])
        rows = (queries.flatten(0, 1), keys.flatten(0, 1))
        cells = info_nce(*rows, self.cells, weight.flatten(), temperature=self.temperature)

        loss = (1 - self.dense) * whole + self.dense * cells
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.wholes = self._pushed(self.wholes, k.whole)
        self.cells = self._pushed(self.cells, k.cells.mean(1))
        self.fresh = False
        return loss.detach()

    def _pushed(self, queue: Tensor, new: Tensor) -> Tensor:
        """The newest vectors first, the oldest dropped; what the queue began with is replaced by the first batch."""
        new = F.normalize(new, dim=1)
        if self.fresh:
            return new.repeat(-(-len(queue) // len(new)), 1)[: len(queue)]
        return torch.cat([new, queue])[: len(queue)]
