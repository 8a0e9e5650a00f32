"""Images of many nuclei take neither much memory nor much time: targets, records and predictions."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, time, torch
from colocate.evaluate.decoders import instance_target
from colocate.evaluate.metrics import FAMILIES
from colocate.evaluate.metrics.objects import Objects

class Data:
    def object_classes(self, number, ids):
        return torch.ones_like(ids)

torch.set_num_threads(1)
side, step, images, shift = map(int, sys.argv[1:])
ids = torch.zeros(side, side, dtype=torch.int32)
for number in range((side // step) ** 2):
    top, left = (step * place for place in divmod(number, side // step))
    ids[top : top + 14, left : left + 14] = number + 1
instance_target(Data(), 0, ids[:50, :50]), Objects.of_ids(ids[:50, :50])
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for _ in range(images):
    instance_target(Data(), 0, ids)
    truth = Objects.of_ids(ids)
    found = Objects.of_ids(torch.roll(ids, shift, 1))
    found = found._replace(scores=[1 - place / 9999 for place in range(len(found.rles))])
    for name in ("glas", "panoptic"):
        FAMILIES[name].record(truth, found)
    FAMILIES["coco"].record(truth, found, len(found.rles))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(truth.rles), (after - before) / 2**20, time.process_time() - began)
"""


@pytest.mark.parametrize(
    ("side", "step", "images", "shift", "objects", "seconds"),
    [(1000, 24, 1, 0, 1681, 5), (1000, 24, 1, 15, 1681, 5), (1000, 44, 14, 3, 484, 20)],
    ids=["all found", "none found", "a test set"],
)
def test_crowds(side: int, step: int, images: int, shift: int, objects: int, seconds: float) -> None:
    """A mask for each nucleus took 3.3 GiB and 19 s."""
    asked = [sys.executable, "-c", MEASURE, *map(str, (side, step, images, shift))]
    count, gib, took = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    assert int(count) == objects
    assert float(gib) < 0.3
    assert float(took) < seconds
