"""What training knows of a method: a module whose forward takes a batch of view pairs and returns its losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ..backbones import Backbone
from ..networks import Encoder, Features
from ..views import Batch


class Losses(NamedTuple):
    """The terms of a method's loss, weighted already, and the features they were taken from (for health checks)."""

    whole: Float[Tensor, ""]
    cells: Float[Tensor, ""] | None
    query: Features
    key: Features

    def total(self) -> Float[Tensor, ""]:
        """What is minimised."""
        return self.whole if self.cells is None else self.whole + self.cells


class Method(nn.Module, ABC):
    """A way to learn from pairs of views. The loss *is* forward, so that distributed training sees it.

    `query` is the encoder that learns; its backbone is what a run exports.
    """

    query: Encoder

    @property
    def backbone(self) -> Backbone:
        """The backbone that learns, with what it is."""
        assert isinstance(self.query.backbone, Backbone)
        return self.query.backbone

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Losses of one batch. State that is not learned (key encoder, queues) moves here as well."""
