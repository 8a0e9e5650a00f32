"""Prototypes along the overlap: cells predict a teacher's assignments, pooled by exact shared area."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from colocate.base.distributed import gather, own_part, to_device
from colocate.core.geometry import exact
from colocate.core.matching import overlap
from colocate.core.objectives import sinkhorn
from colocate.core.views import Batch, View
from colocate.methods.method import Losses, Method
from colocate.methods.settings import PrototypesConfig
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Features, Momentum, group_batch_norm


@final
class PrototypeHead(nn.Module):
    """Cosine similarity of projected features to each prototype: (..., c) to (..., k)."""

    def __init__(self, channels: int, hidden: int, width: int, prototypes: int) -> None:
        super().__init__()
        # With torch's own start, as it was raced; the reference's larger one is for the contrastive methods.
        self.project = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))
        self.prototypes = nn.Parameter(torch.randn(prototypes, width))

    def forward(self, x: Float[Tensor, "*some c"]) -> Float[Tensor, "*some k"]:
        return F.normalize(self.project(x), dim=-1) @ F.normalize(self.prototypes, dim=1).T


@final
class Prototypes(Method):
    """Swapped prediction (SwAV, arXiv:2006.09882) of cells, along the exact overlap (PLM, arXiv:2212.12105).

    A teacher (moving average of the student) assigns the cells of the second view to prototypes, balanced over the
    cells of the batch and some past ones. A student cell predicts the assignment of its tissue, the mean of the
    teacher cells' by shared area; and the teacher cell's own assignment is predicted by the mean of the student's
    distributions. A mean of distributions is the distribution of the mixed tissue, where a mean of features is no
    cell's feature. Where tissue repeats, equal cells get equal assignments: there are no false negatives.
    b tiles, n and m cells a view, k prototypes. Local views, where a batch has them, are further students.
    """

    def __init__(self, student: Encoder, config: PrototypesConfig, momentum: float) -> None:
        super().__init__()
        self.query = student
        self.key = Momentum(student, momentum)
        self.config = config
        self.past: Tensor
        self.begun: Tensor
        self.register_buffer("past", torch.zeros(config.memory, config.prototypes))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, batch: Batch) -> Losses:
        views = (batch.first, *batch.locals)
        students: list[Features] = [self.query(view.images) for view in views]
        with torch.no_grad():
            self.key.follow(self.query)
            teacher: Features = self.key(batch.second.images)
            assigned = self.assign(teacher)
        # In float16 the logarithm of a small share would be lost.
        with torch.autocast(assigned.device.type, enabled=False):
            terms = [
                self.predict(view, batch.second, student, teacher, assigned)
                for view, student in zip(views, students, strict=True)
            ]
        return Losses({"cells": torch.stack(terms).mean()}, students[0], teacher)

    def assign(self, teacher: Features) -> Float[Tensor, "b m k"]:
        """Each teacher cell's distribution over prototypes, balanced over the cells of all processes and past ones.

        Before there are past ones, the first cells stand for them.
        """
        assert teacher.cells is not None
        everyone = gather(exact(teacher.cells))
        scores, memory = everyone.flatten(0, 1), len(self.past)
        repeated = scores.repeat(-(-memory // len(scores)), 1)[:memory]
        scores = torch.cat([scores, torch.where(self.begun, self.past, repeated)])
        self.past.copy_(scores[:memory])
        self.begun.fill_(True)
        shares = sinkhorn(scores, self.config.teacher_temperature, self.config.iterations)
        return own_part(shares[: everyone.shape[0] * everyone.shape[1]].view_as(everyone))

    def predict(
        self, own: View, other: View, student: Features, teacher: Features, assigned: Float[Tensor, "b m k"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of both directions: the mean over all cells of weight x cross-entropy."""
        assert student.cells is not None
        there = overlap(own.crop, other.crop, student.grid, teacher.grid)
        back = overlap(other.crop, own.crop, teacher.grid, student.grid)
        log_p = (exact(student.cells) / self.config.temperature).log_softmax(2)
        forward = -(there.pool(assigned) * log_p).sum(2)
        pooled = back.pool(log_p.exp()).clamp_min(1e-8)  # zero where the student saw nothing, and there weighs nothing
        backward = -(assigned * pooled.log()).sum(2)
        sides = ((there.weight, forward), (back.weight, backward))
        return torch.stack(
            [(to_device(weight.to(each.dtype), each.device) * each).mean() for weight, each in sides]
        ).mean()


def build(config: PrototypesConfig, backbone: Backbone, forwards_per_step: int = 1) -> Prototypes:
    """The method around a backbone; `forwards_per_step` is how many batches one optimiser step gathers."""
    group_batch_norm(backbone, config.norm_group)
    head = PrototypeHead(backbone.channels, config.hidden, config.width, config.prototypes)
    return Prototypes(Encoder(backbone, whole=head, cells=head), config, config.momentum ** (1 / forwards_per_step))
