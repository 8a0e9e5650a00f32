"""Families of scores: a record of each image, and scores from the records of a set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Float64, Int64

Record: TypeAlias = dict[str, Any]
"""Counts and sums of one image that scores are computed from, in plain JSON values."""

Packed: TypeAlias = Callable[[Int64[np.ndarray, "d n"]], dict[str, Float64[np.ndarray, " d"]]]
"""Counts of each of n images in each of d sets -> every score of each set; nan where it is undefined."""


@final
class Family(NamedTuple):
    """Scores that come from the same records."""

    record: Callable[..., Record]
    """Truth and finding of one image -> its record; slow, once an image."""
    pack: Callable[[Sequence[Record]], Packed]
    """Records of n images -> the scores of sets of them; quick, thousands of sets a second."""

    def scores(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of these images together; nan where a score is undefined."""
        once = np.ones((1, len(records)), np.int64)
        return {name: float(values[0]) for name, values in self.pack(records)(once).items()}


def ratio(above: Float64[np.ndarray, "*s"], below: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """above / below, nan where below is 0.

    >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    array([0.5, nan])
    """
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def mean_of_defined(values: Float64[np.ndarray, "d c"]) -> Float64[np.ndarray, " d"]:
    """The mean of each row's numbers that are not nan; nan where none is.

    >>> mean_of_defined(np.array([[1.0, 3.0], [np.nan, 2.0], [np.nan, np.nan]]))
    array([ 2.,  2., nan])
    """
    return ratio(np.nansum(values, 1), (~np.isnan(values)).sum(1).astype(np.float64))
