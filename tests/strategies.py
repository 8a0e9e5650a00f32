"""Hypothesis strategies: crops, and pairs of crops of one tile in every position to each other."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from colocate.core.geometry import Crop

TILE = 256
SYMMETRIES = [
    (upside, sideways, turned) for turned in (False, True) for upside in (False, True) for sideways in (False, True)
]

Span = tuple[float, float]
symmetry = st.sampled_from(SYMMETRIES)
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


def placed(rows: Span, cols: Span, how: tuple[bool, bool, bool]) -> tuple[list[float], bool]:
    """Signed corners (top, left, bottom, right) and transposition of an upright rectangle seen in a symmetry."""
    upside, sideways, turned = how
    (top, bottom), (left, right) = rows[:: -1 if upside else 1], cols[:: -1 if sideways else 1]
    return [top, left, bottom, right], turned


def crops(boxes: list[tuple[list[float], bool]]) -> Crop:
    return Crop.of([corners for corners, _ in boxes], [turned for _, turned in boxes])


@st.composite
def spans(draw: st.DrawFn, low: float = 0, high: float = TILE, *, whole: bool = False, shortest: int = 8) -> Span:
    """A stretch of an axis between two places, at least `shortest` pixels long, its ends whole or fractional."""
    number = st.integers if whole else lambda a, b: st.floats(a, b).map(lambda x: round(x, 3))
    start = draw(number(low, max(low, high - shortest)))
    return start, draw(number(start + shortest, high))


@st.composite
def span_pairs(draw: st.DrawFn, *, whole: bool = False, shortest: int = 8) -> tuple[Span, Span]:
    """Two stretches of one axis: anywhere, the same, one inside the other, end to end, or apart."""
    relation = draw(st.sampled_from(["any", "any", "any", "same", "nested", "nested", "touching", "apart"]))
    if relation == "any":
        return draw(spans(whole=whole, shortest=shortest)), draw(spans(whole=whole, shortest=shortest))
    if relation == "same":
        return (span := draw(spans(whole=whole, shortest=shortest))), span
    if relation == "nested":
        outer = draw(spans(whole=whole, shortest=shortest))
        pair = (outer, draw(spans(*outer, whole=whole, shortest=shortest)))
    else:
        middle, gap = draw(st.integers(shortest, TILE - shortest - 3)), 0 if relation == "touching" else 3
        pair = (
            (
                draw(spans(0, middle, whole=whole, shortest=shortest))[0],
                middle,
            ),
            (middle + gap, draw(spans(middle + gap, TILE, whole=whole, shortest=shortest))[1]),
        )
    return pair[::-1] if draw(st.booleans()) else pair


@st.composite
def crop_pairs(
    draw: st.DrawFn, *, whole: bool = False, shortest: int = 8, most: int = 3, square: bool = True
) -> tuple[Crop, Crop]:
    """Up to `most` pairs of crops in all symmetries; unless `square`, all pairs agree on whether their axes swap."""
    own, other = [], []
    swap = draw(st.booleans())
    for _ in range(draw(st.integers(1, most))):
        own_rows, other_rows = draw(span_pairs(whole=whole, shortest=shortest))
        own_cols, other_cols = draw(span_pairs(whole=whole, shortest=shortest))
        how, other_how = draw(symmetry), draw(symmetry)
        if not square:
            other_how = (*other_how[:2], how[2] != swap)
        own.append(placed(own_rows, own_cols, how))
        other.append(placed(other_rows, other_cols, other_how))
    return crops(own), crops(other)


@st.composite
def same_crops(draw: st.DrawFn, *, whole: bool = False, shortest: int = 8) -> tuple[Crop, Crop]:
    """One rectangle seen in all 64 pairs of symmetries."""
    rows, cols = draw(spans(whole=whole, shortest=shortest)), draw(spans(whole=whole, shortest=shortest))
    pairs = [(one, other) for one in SYMMETRIES for other in SYMMETRIES]
    return crops([placed(rows, cols, one) for one, _ in pairs]), crops(
        [placed(rows, cols, other) for _, other in pairs]
    )


def intersection(own: Crop, other: Crop) -> torch.Tensor:
    """Area of the intersection of each pair of crops."""
    sides = []
    for a, b in ((own.rows, other.rows), (own.cols, other.cols)):
        sides.append((torch.minimum(a.amax(1), b.amax(1)) - torch.maximum(a.amin(1), b.amin(1))).clamp_min(0))
    return sides[0] * sides[1]
