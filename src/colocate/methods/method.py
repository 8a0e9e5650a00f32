"""The interface of a method: a module whose forward takes a batch of views and returns its losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from colocate.core.views import Batch
from colocate.models.backbones import Backbone
from colocate.models.encoder import Encoder, Features


class Losses(NamedTuple):
    """The loss of one batch by named terms, and the features they were taken from.

    The journal logs each term under its name. colocate's own methods call them `whole` (whole views), `cells` (matched
    cells) and `concepts` (clusters of cells).
    """

    terms: Mapping[str, Float[Tensor, ""]]
    """Weighted already."""
    query: Features
    """Of the batch's first views."""
    key: Features | None = None
    """Of the batch's second views; None where they are not encoded: correspondence is not measured then."""

    def total(self) -> Float[Tensor, ""]:
        """The sum of all terms, which is minimised."""
        return torch.stack([*self.terms.values()]).sum()


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
