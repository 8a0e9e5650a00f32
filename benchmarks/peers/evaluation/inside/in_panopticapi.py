"""panopticapi, the authors' code of panoptic quality, on one core."""

from __future__ import annotations

import json

from case import CASE, report
from panopticapi.evaluation import pq_compute_single_core  # pyright: ignore[reportMissingImports]


def pq() -> dict[str, float]:
    truth, found = (json.loads((CASE / f"{side}.json").read_text()) for side in ("truth", "found"))
    categories = {one["id"]: one for one in truth["categories"]}
    pairs = list(zip(truth["annotations"], found["annotations"], strict=True))
    counted = pq_compute_single_core(0, pairs, CASE / "truth", CASE / "found", categories)
    means, _ = counted.pq_average(categories, isthing=True)
    return {name.upper(): float(means[name]) for name in ("pq", "sq", "rq")}


report("panopticapi-lite", pq)
