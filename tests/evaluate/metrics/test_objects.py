"""Objects as codes: nothing is lost on the way to COCO's form and back, and no pixel is owned twice."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.objects import Objects, label_map, shared_pixels

from .scenes import blobs

SEEDS = range(10)


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_are_the_masks(seed: int) -> None:
    ids = blobs(np.random.default_rng(seed))
    found = Objects.of_ids(ids)
    present = ids.unique()[ids.unique() > 0]
    assert len(found.rles) == len(present)
    for rle, number, box in zip(found.rles, present, found.xywh, strict=True):
        mask = ids == number
        assert np.array_equal(coco_mask.decode(rle), mask.numpy())  # type: ignore[arg-type]
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        left, top = columns[0].item(), rows[0].item()
        assert box == [left, top, columns[-1].item() + 1 - left, rows[-1].item() + 1 - top]
    masks = torch.stack([ids == number for number in present]) if len(present) else torch.zeros(0, 9, 11).bool()
    assert Objects.of_masks(found.size, masks, found.classes, found.scores) == found


def test_more_objects_than_a_byte_counts() -> None:
    ids = torch.arange(300, dtype=torch.int32).view(15, 20)
    found = Objects.of_ids(ids)
    assert len(found.xywh) == 299
    assert torch.equal(label_map(found), ids)
    for family, best in (("panoptic", "PQ"), ("glas", "object F1")):
        assert FAMILIES[family].scores([FAMILIES[family].record(found, found)])[best] == pytest.approx(100)


def test_the_surer_lies_on_top_and_the_unsure_nowhere() -> None:
    masks = torch.tensor([[[1, 1, 1, 1, 0]], [[0, 1, 1, 0, 0]], [[0, 0, 1, 1, 0]], [[1, 1, 1, 1, 1]]]).bool()
    found = Objects.of_masks((1, 5), masks, [1, 1, 1, 1], [0.5, 0.9, 0.9, 0.4])
    assert label_map(found).tolist() == [[1, 2, 2, 3, 0]]
    assert label_map(found, 0.4).tolist() == [[1, 2, 2, 3, 4]]
    assert label_map(found, 0.95).tolist() == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_map_is_the_masks_painted_from_the_least_sure_up(seed: int) -> None:
    """Of large masks in many parts, some empty, some whole: codes of one letter and of several, of growth and loss."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 400)), int(rng.integers(1, 90)))
    masks = torch.from_numpy(rng.random((8, *size)) < rng.choice([0, 0.001, 0.1, 0.9, 1], (8, 1, 1)))
    masks[:4, size[0] // 3 :] = False
    scores = rng.choice([0.3, 0.5, 0.7, 0.9], 8).tolist()
    painted = torch.zeros(size, dtype=torch.int32)
    for place in sorted(range(8), key=lambda i: (scores[i], -i)):
        if scores[place] >= 0.5:
            painted[masks[place]] = place + 1
    assert torch.equal(label_map(Objects.of_masks(size, masks, [1] * 8, scores)), painted)
    present = painted.unique()[painted.unique() > 0]
    again = label_map(Objects.of_ids(painted))
    assert torch.equal(torch.cat([torch.zeros(1, dtype=torch.int32), present])[again.long()], painted)


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_pixels_by_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = blobs(rng), blobs(rng)
    table = shared_pixels(a, b)
    assert table.sum() == a.numel()
    for i, row in enumerate(table.tolist()):
        assert row == [int(((a == i) & (b == j)).sum()) for j in range(len(row))]


def test_a_finding_of_another_size_has_no_score() -> None:
    """Turned by 90 degrees it has as many pixels, and was scored as if they lay the same way."""
    truth = torch.zeros(4, 6, dtype=torch.int32)
    truth[1:3, 1:3] = 1
    for other in (truth.T.contiguous(), truth[:3]):
        for family in ("coco", "glas", "panoptic"):
            with pytest.raises(ValueError, match=r"the finding is .* pixels and the truth \(4, 6\)"):
                FAMILIES[family].record(Objects.of_ids(truth), Objects.of_ids(other))
        for ignored in (None, 1):
            with pytest.raises(ValueError, match=r"the finding is .* pixels and the truth \(4, 6\)"):
                inspect.unwrap(FAMILIES["semantic"].record)(truth, other, ["a", "b"], ignored)


def test_classes_are_those_of_the_objects_that_are_there() -> None:
    """One too many, of an object without pixels, and all after it had the class of another."""
    ids = torch.tensor([[0, 3, 3], [7, 7, 0]], dtype=torch.int32)
    assert Objects.of_ids(ids, [5, 6]).classes == [5, 6]
    for wrong in ([4, 5, 6], [5]):
        with pytest.raises(ValueError, match=f"{len(wrong)} classes for 2 objects"):
            Objects.of_ids(ids, wrong)
