"""Images of many nuclei do not take much memory: targets, records and predictions."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from colocate.evaluation.decoders import instance_target
from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.objects import Objects

class Data:
    def object_classes(self, number, ids):
        return torch.ones_like(ids)

torch.set_num_threads(1)
for side, step, images, shift in ((1000, 24, 1, 0), (1000, 24, 1, 15), (1000, 44, 4, 3)):
    ids = torch.zeros(side, side, dtype=torch.int32)
    for number in range((side // step) ** 2):
        top, left = (step * place for place in divmod(number, side // step))
        ids[top : top + 14, left : left + 14] = number + 1
    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(images):
        instance_target(Data(), 0, ids)
        truth = Objects.of_ids(ids)
        found = Objects.of_ids(torch.roll(ids, shift, 1))
        found = found._replace(scores=[1 - place / 9999 for place in range(len(found.rles))])
        for name in ("glas", "panoptic"):
            FAMILIES[name].record(truth, found)
        FAMILIES["coco"].record(truth, found, len(found.rles))
        count += len(truth.rles)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(count, (after - before) / 2**20)
"""


@pytest.mark.slow
def test_crowds() -> None:
    """1,681 nuclei an image found and not found, and a test set of four images: a mask for each took 1 GiB and more."""
    asked = [sys.executable, "-c", MEASURE]
    lines = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    for line, objects in zip(lines, (1681, 1681, 4 * 484), strict=True):
        count, gib = line.split()
        assert int(count) == objects
        assert float(gib) < 0.3
