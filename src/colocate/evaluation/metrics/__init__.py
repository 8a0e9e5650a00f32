"""Scores of segmentations, in two steps: a record of each image, and scores from records.

    record(truth, found) -> dict               one image, slow; plain JSON values
    FAMILIES[name].scores(records) -> dict     any set of images, from their records alone
    FAMILIES[name].pack(records)(counts)       many sets at once: `counts` says how often each image stands in each

Bootstrap wants thousands of sets of the same images. Lists of records would be read anew for each, so `pack` reads
them once and returns a function of the counts; `scores` is that function asked about one set with every image once.
All families but one are ratios of sums over images, and so one matrix product; average precision needs an order.

Scores are in percent, but for "object Hausdorff", which is in pixels and the one where lower is better; nan where
undefined.
"""

from __future__ import annotations

from colocate.evaluation.metrics import coco, glas, panoptic, semantic
from colocate.evaluation.metrics.family import Family

FAMILIES = {
    "coco": Family(coco.record, coco.pack),
    "glas": Family(glas.record, glas.pack),
    "panoptic": Family(panoptic.record, panoptic.pack),
    "semantic": Family(semantic.record, semantic.pack),
    "probe": Family(semantic.record_probe, semantic.pack_probe),
}

LOWER_IS_BETTER = {"object Hausdorff"}
