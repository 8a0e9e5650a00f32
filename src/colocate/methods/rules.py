"""Matching rules as settings: which match of two views a dense method follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

import tyro

if TYPE_CHECKING:
    from colocate.core.matching import Match
    from colocate.core.views import View
    from colocate.models.encoder import Features


class Rule(ABC):
    """Pairs each cell of one view with a partner out of another view of the same tile."""

    words: ClassVar[str]
    """What it goes by, for tables."""

    @abstractmethod
    def __call__(self, own: View, other: View, mine: Features, theirs: Features) -> Match:
        """The match of `own`'s cells in `other`; its views are b each, of the same tiles."""


@final
@dataclass(frozen=True)
class Overlap(Rule):
    """Precise location matching: cells are paired by the exact tissue area they share."""

    words: ClassVar[str] = "overlap"
    rule: Annotated[Literal["overlap"], tyro.conf.Suppress] = "overlap"
    weighted: bool = True
    """Weight each cell by how much of it the other view saw; off (an ablation): every cell seen at all counts fully."""
    attention: bool = False
    """Pool by shared area times similarity (softmax at temperature 0.2), not by shared area alone (an ablation)."""

    def __call__(self, own: View, other: View, mine: Features, theirs: Features) -> Match:
        from colocate.core.matching import attend, overlap

        match = overlap(own.crop, other.crop, mine.grid, theirs.grid)
        if not self.weighted:
            match = replace(match, weight=(match.seen > 0).to(match.seen))
        if not self.attention:
            return match
        assert mine.cells is not None and theirs.cells is not None
        return attend(match, mine.cells, theirs.cells)


@final
@dataclass(frozen=True)
class MostSimilar(Rule):
    """DenseCL's: the partner is the cell whose backbone feature is most similar (cosine)."""

    words: ClassVar[str] = "most similar feature"
    rule: Annotated[Literal["most-similar"], tyro.conf.Suppress] = "most-similar"

    def __call__(self, own: View, other: View, mine: Features, theirs: Features) -> Match:
        from colocate.core.matching import most_similar

        return most_similar(mine.field, theirs.field)


@final
@dataclass(frozen=True)
class NearestFeature(Rule):
    """VICRegL's first: the partner is the cell whose expanded feature is nearest (Euclidean)."""

    words: ClassVar[str] = "nearest feature"
    rule: Annotated[Literal["nearest-feature"], tyro.conf.Suppress] = "nearest-feature"

    def __call__(self, own: View, other: View, mine: Features, theirs: Features) -> Match:
        from colocate.core.matching import nearest_feature

        assert mine.cells is not None and theirs.cells is not None
        return nearest_feature(mine.cells, theirs.cells)


@final
@dataclass(frozen=True)
class NearestCentre(Rule):
    """VICRegL's second: the partner is the cell whose centre is nearest on the tile."""

    words: ClassVar[str] = "nearest centre"
    rule: Annotated[Literal["nearest-centre"], tyro.conf.Suppress] = "nearest-centre"

    def __call__(self, own: View, other: View, mine: Features, theirs: Features) -> Match:
        from colocate.core.matching import nearest_centre

        return nearest_centre(own.crop, other.crop, mine.grid, theirs.grid)
