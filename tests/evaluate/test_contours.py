"""Objects by their contours: borders as wide as asked for, touching objects parted, and a network that learns them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from scipy import ndimage
from scipy.spatial import KDTree

from colocate.base.errors import UserError
from colocate.datasets.writer import Draft, Facts, write
from colocate.evaluation.contours import ContourSegmenter, borders, contour_target, on_glass, parted
from colocate.evaluation.fit import DRAWS
from colocate.evaluation.protocol import contours_for
from colocate.evaluation.settings import ContoursConfig, FitConfig
from colocate.models.backbones import Backbone

SIDE = 96


def touching(seed: int = 0) -> np.ndarray:
    """Convex objects of two classes (odd and even numbers) that fill most of the picture."""
    places = np.indices((SIDE, SIDE)).reshape(2, -1).T
    points = np.random.default_rng(seed).uniform(0, SIDE, (14, 2))
    nearest = KDTree(points).query(places)[1].reshape(SIDE, SIDE)
    return np.where(nearest % 4 > 0, nearest, 0).astype(np.int32)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_borders_are_so_wide(width: int) -> None:
    """Against every pixel's distance from all of its object's edges, whose neighbours are not of it."""
    ids = touching()
    ids[40:43, 8:60] = 999
    found = borders(ids, width)
    around = np.pad(ids, 1, mode="edge")
    neighbours = np.stack([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
    edges = (neighbours != ids).any(0)
    for number in np.unique(ids)[1:]:
        its = ids == number
        far = np.hypot(*(np.argwhere(its)[:, None] - np.argwhere(edges & its)[None]).transpose(2, 0, 1)).min(1)
        assert np.array_equal(found[its], far < min(width, far.max() / 2))
    assert not found[ids == 0].any() and not borders(np.zeros_like(ids), width).any()
    assert not found[41, 9:59].any() and found[40, 8:60].all()  # the thin one keeps its middle


def known(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, of two classes and of borders, as a network that is right all over would give them."""
    border = borders(ids, 3)
    inside = np.stack([(ids > 0) & ~border & (ids % 2 == class_ % 2) for class_ in (1, 2)])
    return 0.95 * inside.astype(np.float32), 0.9 * border.astype(np.float32)


def test_touching_objects_are_parted() -> None:
    ids = touching(1)
    numbers = np.unique(ids)[1:]
    found = parted(*known(ids), smallest=1, least=0.0)
    joined: Any = ndimage.label(ids > 0)
    assert joined[1] < len(numbers) / 2
    assert len(found.classes) == len(found.scores) == int(found.ids.max()) == len(numbers)
    for number in numbers:
        place = int(found.ids[ids == number].mode().values)
        mask = found.ids.numpy() == place
        assert (mask & (ids == number)).sum() > 0.85 * (mask | (ids == number)).sum()  # of the smallest, 280 px
        assert found.classes[place - 1] == 2 - number % 2
        assert 0.9 < found.scores[place - 1] < 0.95
    assert torch.equal(found.ids > 0, torch.from_numpy(ids > 0))


def test_small_and_unsure_objects_are_left_out() -> None:
    ids = touching(1)
    inside, border = known(ids)
    inside[:, ids == 5] *= 0.8
    border[ids == 5] *= 0.8
    cores = ndimage.sum_labels(inside.sum(0) > 0.5, ids, np.unique(ids)[1:])

    def count(smallest: int, least: float) -> int:
        found = parted(inside, border, smallest, least)
        assert sorted(np.unique(found.ids)) == list(range(len(found.classes) + 1))
        return len(found.classes)

    assert count(1, 0.8) == len(cores) - 1 and count(1, 0.96) == 0
    middle = int(np.median(cores))
    assert count(middle, 0) == (cores >= middle).sum() < len(cores)
    assert parted(0 * inside, 0 * border, 1, 0)[1:] == ([], [])


@pytest.mark.slow
def test_a_network_learns_contours() -> None:
    """Dark objects with a still darker border, touching: as many as there are, each where it is."""
    ids = torch.from_numpy(touching(1))
    border = torch.from_numpy(borders(ids.numpy(), 3))
    shade = torch.where(ids > 0, 0.5, 1.0).masked_fill(border, 0.0)
    image = shade.expand(3, -1, -1)
    torch.manual_seed(0)
    config = ContoursConfig(FitConfig(steps=1, batch=1), crop=96)
    model = ContourSegmenter(config, Backbone("test_resnet"), 1, (0.5,) * 3, (0.3,) * 3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    target = {"classes": (ids > 0).long().masked_fill(border, 2)}
    for _ in range(60):
        model.train()
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    found = model.predict((255 * image).byte())
    assert len(found.rles) == len(ids.unique()) - 1
    area = sum(int(coco_mask.area(rle)) for rle in found.rles)
    assert found.size == (SIDE, SIDE) and area == pytest.approx(int((ids > 0).sum()), rel=0.05)


def test_training_crops_show_glass_beside_the_image() -> None:
    image, mask = torch.zeros(3, 40, 50, dtype=torch.uint8), torch.ones(40, 50, dtype=torch.int32)
    shares = []
    for draws in torch.rand(200, DRAWS, generator=torch.Generator().manual_seed(0)):
        pixels, target = on_glass(image, mask, draws, 32, symmetries=True, stain=0)
        glass = target == 0
        assert pixels.shape == (3, 32, 32) and (target[~glass] == 1).all()
        assert torch.equal(pixels > 1, glass.expand(3, -1, -1)) and (pixels[:, glass] >= 225).all()
        shares.append(glass.float().mean().item())
    assert 0.1 < sum(shares) / len(shares) < 0.4 and min(shares) == 0


def test_training_crops_vary_in_stain_alone() -> None:
    """In optical density a crop is what it is without stain jitter, its stains scaled and shifted."""
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # Ruifrok and Johnston 2001
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    amounts = np.random.default_rng(0).uniform(0.1, 0.6, (40 * 40, 3))
    image = torch.from_numpy((255 * np.exp(-amounts @ stains)).round().astype(np.uint8).reshape(40, 40, 3))
    mask = torch.ones(40, 40, dtype=torch.int32)
    for draws in torch.rand(20, DRAWS, generator=torch.Generator().manual_seed(1)):
        pair = [on_glass(image.permute(2, 0, 1), mask, draws, 32, symmetries=True, stain=stain) for stain in (0, 0.4)]
        assert torch.equal(pair[0][1], pair[1][1])
        tissue = pair[0][1].numpy() > 0
        plain, varied = (-np.log(pixels.numpy()[:, tissue] / 255.0).T @ np.linalg.inv(stains) for pixels, _ in pair)
        for number in range(3):
            slope, shift = np.polyfit(plain[:, number], varied[:, number], 1)
            assert slope == pytest.approx(1 + 0.4 * (2 * float(draws[6 + number]) - 1), abs=0.02)
            assert shift == pytest.approx(0.05 * (2 * float(draws[9 + number]) - 1), abs=0.02)


def test_glass_is_no_object_and_joins_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that has seen no glass and calls it the inside of an object, as it does all else."""
    model = ContourSegmenter(ContoursConfig(smallest=1), Backbone("test_resnet"), 1, (0.5,) * 3, (0.3,) * 3)
    inside = torch.tensor([0.0, 9.0, 0.0]).view(1, 3, 1, 1).expand(2, -1, SIDE, SIDE)
    monkeypatch.setattr(model.unet, "scores", lambda windows: inside)
    tissue = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    tissue[0, 10:40] = tissue[0, 50:90] = True
    windows = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    assert [int(ids.max()) for ids, *_ in model.label(windows, 0.5)] == [1, 1]
    parts, nothing = model.label(windows, 0.5, tissue)
    assert len(parts.scores) == 2 and torch.equal(parts.ids > 0, tissue[0]) and nothing.classes == []


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="border and smallest are 1 or more, in px; stain"):
        ContoursConfig(border=0)
    with pytest.raises(UserError, match="stain is 0 or more, and below 1"):
        ContoursConfig(stain=1)
    with pytest.raises(UserError, match="crop is a multiple of 32 px"):
        ContoursConfig(crop=100)


def test_what_is_far_smaller_than_training_objects_is_no_object(tmp_path: Path) -> None:
    """All that a network could learn are found, by what it should say of them; test images, with specks here, are not
    asked."""
    facts, image = Facts("squares", "instances", ("gland",), ""), torch.full((3, 64, 64), 200, dtype=torch.uint8)

    def drafts() -> Iterator[Draft]:
        for number in range(12):
            ids = torch.zeros(64, 64, dtype=torch.int32)
            for place, side in enumerate([1, 1] if number > 9 else [8 + number, 16 + number]):
                ids[place * 32 : place * 32 + side, 4 : 4 + side] = place + 1
            part = "test" if number > 9 else "train"
            yield Draft(f"image{number}", image, ids, f"case{number}", 0.5, {"one": part})

    data = write(tmp_path / "data", facts, drafts())
    config = contours_for(data)
    for number in range(12):
        target = contour_target(data, number, data.mask(number), config.border)["classes"].numpy()
        inside, border = (np.float32(target == called) for called in (1, 2))
        assert len(parted(inside[None], border, config.smallest, 0.0).classes) == (0 if number > 9 else 2)
    specks = write(tmp_path / "specks", facts, islice(drafts(), 10, 12), partial=True)
    assert contours_for(specks).smallest == ContoursConfig().smallest  # nothing to learn it from


@pytest.mark.parametrize("sides", [(12, 60), (12, 20, 40, 60)])
def test_a_few_objects_say_what_is_too_small(sides: tuple[int, ...], tmp_path: Path) -> None:
    """At least half of the smallest of them: nothing is known of smaller ones."""
    ids = torch.zeros(64, 64 * len(sides), dtype=torch.int32)
    for place, side in enumerate(sides):
        ids[2 : 2 + side, 64 * place + 2 : 64 * place + 2 + side] = place + 1
    image = torch.full((3, *ids.shape), 200, dtype=torch.uint8)
    drafts = [Draft(part, image, ids, part, 0.5, {"one": part}) for part in ("train", "test")]
    config = contours_for(write(tmp_path / "few", Facts("squares", "instances", ("gland",), ""), drafts))
    inside = np.where(borders(ids.numpy(), config.border), 0, ids)
    areas = np.bincount(inside.ravel())[1:]
    assert areas.min() // 2 <= config.smallest <= areas.max()
