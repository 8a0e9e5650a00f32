"""The settings of every method. Networks are in the file that each `build` names, for torch takes seconds to load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from colocate.base.errors import UserError
from colocate.methods.rules import MostSimilar, NearestCentre, NearestFeature, Overlap

if TYPE_CHECKING:
    from colocate.methods.method import Method
    from colocate.models.backbones import Backbone

RGB = tuple[float, float, float]


class Terms(NamedTuple):
    """What a method is made of, in words, for `colocate recipes`."""

    whole: str
    dense: str
    matching: str


@dataclass(frozen=True)
class MethodConfig(ABC):
    """The settings of a method: a frozen dataclass whose fields become options of `colocate pretrain`."""

    @property
    @abstractmethod
    def terms(self) -> Terms:
        """What it is made of."""

    def filling(self, batch: int) -> int:
        """Forward passes until its queue holds as many different keys as it can: the loss rises until then."""
        return 0

    @abstractmethod
    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        """The method around a backbone; `forwards_per_step` is how many batches one optimiser step gathers."""


@dataclass(frozen=True)
class MoCoConfig(MethodConfig):
    """MoCo-v2 (match None), or PLM or DenseCL on top of it, by the match."""

    match: Annotated[Overlap | MostSimilar | None, tyro.conf.AvoidSubcommands] = None
    """What pairs the cells of two views; none: only whole views are contrasted."""
    dense: float = 0.5
    """Share of the dense term in the loss (lambda in the paper); 0 without a match. At 1, whole views play no part."""
    both_ways: bool = True
    """Match the cells of both views (PLM), not only the query's (DenseCL)."""
    align: bool = True
    """A linear layer on matched cells after pooling (A in the PLM paper); DenseCL has none."""
    negatives: Literal["tiles", "cells"] = "tiles"
    """What cells are contrasted with: the mean cells of past tiles (PLM, DenseCL), or the cells of this batch."""
    norm: bool = False
    """Batch norm in the projectors."""
    most_cells: int | None = None
    """Average finer grids to at most this many cells per side before they are contrasted."""
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
    """Batch norm takes its statistics over groups of this many views on each device."""

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

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        from colocate.methods.moco import build

        return build(self, backbone, forwards_per_step)


@dataclass(frozen=True)
class VICRegLConfig(MethodConfig):
    """VICRegL: cells paired by nearest feature, and by place."""

    location: Annotated[NearestCentre | Overlap, tyro.conf.AvoidSubcommands] = field(default_factory=NearestCentre)
    """What pairs cells by place: the nearest centre (VICRegL) or the tissue they share (PLM)."""
    alpha: float = 0.75
    """Share of the whole-view term in the loss."""
    invariance: float = 25.0
    """Coefficient of the squared differences between partners."""
    variance: float = 25.0
    """Coefficient of the variance term."""
    covariance: float = 1.0
    """Coefficient of the covariance term."""
    best: int = 20
    """How many cells of a whole view, the best matched, are compared by place."""
    best_local: int = 4
    """The same for a local view."""
    width: int = 2048
    """Width of the expander of whole views (8,192 for a ResNet-50)."""
    cells_width: int = 512
    """Width of the expander of cells."""
    most_cells: int | None = None
    """Average finer grids to at most this many cells per side before they are compared."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"method.alpha is a share between 0 and 1, not {self.alpha}")
        if min(self.invariance, self.variance, self.covariance) < 0:
            raise UserError("method: invariance, variance and covariance must not be negative")
        if min(self.best, self.best_local, self.width, self.cells_width, self.most_cells or 1) < 1:
            raise UserError("method: best, best_local, width, cells_width and most_cells must be 1 or more")

    @property
    def terms(self) -> Terms:
        weighted = ", weighted" if isinstance(self.location, Overlap) and self.location.weighted else ""
        matching = f"{NearestFeature.words}; {self.location.words}, best {self.best}"
        return Terms("VICReg", f"VICReg on cell pairs{weighted}", matching)

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        from colocate.methods.vicregl import build

        return build(self, backbone, forwards_per_step)


@dataclass(frozen=True)
class ConCLConfig(MethodConfig):
    """ConCL on MoCo-v2; needs `views.reference`."""

    moco: Annotated[MoCoConfig, tyro.conf.arg(name="")] = field(default_factory=MoCoConfig)
    """What it builds on. After the warm-up, concepts take the place of whole views: `dense` is the share of matched
    cells, the rest is that of concepts."""
    concepts: int = 8
    """Clusters per tile."""
    iterations: int = 10
    """Rounds of k-means."""
    warmup_epochs: int = 10
    """Epochs on whole views alone, before clusters are meaningful."""

    def __post_init__(self) -> None:
        if min(self.concepts, self.iterations) < 1 or self.warmup_epochs < 0:
            raise UserError("method: concepts and iterations must be 1 or more, warmup_epochs 0 or more")
        if self.moco.dense == 1:
            raise UserError("method.dense 1 leaves concepts no part, and whole views none in the warm-up: give less")

    @property
    def terms(self) -> Terms:
        whole, dense, matching = self.moco.terms
        matched = self.moco.match is not None
        return Terms(
            f"{whole}, at first",
            "InfoNCE + queue on concepts" + (f"; {dense}" if matched else ""),
            f"{self.concepts} concepts" + (f"; {matching}" if matched else ""),
        )

    def filling(self, batch: int) -> int:
        return self.moco.filling(batch)

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        from colocate.methods.concl import build

        return build(self, backbone, forwards_per_step)


@dataclass(frozen=True)
class PrototypesConfig(MethodConfig):
    """Prototypes along the overlap: no negatives, no queue."""

    prototypes: int = 256
    """Prototypes that cells are assigned to."""
    temperature: float = 0.1
    """Temperature of the student's softmax over prototypes."""
    teacher_temperature: float = 0.05
    """Temperature of the teacher's balanced assignment; lower is harder."""
    iterations: int = 3
    """Rounds of Sinkhorn-Knopp that balance the assignment."""
    memory: int = 9216
    """Past teacher cells over which the assignment is balanced as well; 0: only those of the batch."""
    momentum: float = 0.99
    """Momentum of the teacher."""
    hidden: int = 512
    """Hidden width of the projector."""
    width: int = 128
    """Width of the space that prototypes lie in."""
    norm_group: int = 64
    """Batch norm takes its statistics over groups of this many views on each device."""

    def __post_init__(self) -> None:
        if min(self.prototypes, self.hidden, self.width) < 2 or self.iterations < 1 or self.norm_group < 2:
            raise UserError("method: prototypes, hidden, width and norm_group must be 2 or more, iterations 1 or more")
        if min(self.temperature, self.teacher_temperature) <= 0 or not 0 <= self.momentum < 1 or self.memory < 0:
            raise UserError("method: temperatures must be positive, momentum in [0, 1), memory 0 or more")

    @property
    def terms(self) -> Terms:
        return Terms("none", f"cross-entropy on {self.prototypes} prototypes, weighted", "overlap")

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        from colocate.methods.prototypes import build

        return build(self, backbone, forwards_per_step)


@dataclass(frozen=True)
class DistilConfig(MethodConfig):
    """Dense distillation along the overlap, from a frozen network."""

    teacher: str = "vit_small_patch14_dinov2.lvd142m"
    """Any timm network (also hf-hub:OWNER/NAME and local-dir:FOLDER), or the folder of a colocate run."""
    weights: str = "published"
    """The teacher's weights: published (downloaded by timm), a file in timm's names, or random (a control)."""
    mean: RGB | None = None
    """Mean of the images that the teacher learned from, if it differs from the published one."""
    std: RGB | None = None
    """Their standard deviation."""
    relations: float = 1.0
    """Weight of the similarities between a tile's cells, relative to the cells themselves."""
    norm_group: int = 64
    """Batch norm takes its statistics over groups of this many views on each device."""

    def __post_init__(self) -> None:
        if self.relations < 0 or self.norm_group < 2:
            raise UserError("method: relations must be 0 or more, norm_group 2 or more")
        if (self.mean is None) != (self.std is None):
            raise UserError("method: mean and std go together")

    @property
    def by_run(self) -> bool:
        """Whether the teacher is a run's folder."""
        return Path(self.teacher).expanduser().joinpath("backbone.json").is_file()

    @property
    def terms(self) -> Terms:
        return Terms("none", f"cosine and relations to {self.teacher}, weighted", "overlap")

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        from colocate.methods.distil import build

        return build(self, backbone, forwards_per_step)
