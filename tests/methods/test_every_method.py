"""What every method must stand: stopping anywhere, half precision, one tile at a time."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.base.errors import UserError
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_views
from colocate.training.journal import read_journal
from colocate.training.loop import build_method, pretrain
from colocate.training.recipe import Recipe
from tests.test_train import same_run, stopped
from tests.tiny import METHODS, tiny_recipe

KINDS = ("cells", "plm-vicregl", "plm-concl", "prototypes", "distil")  # of their own state; tests/test_train.py: plm
VIEWS = ViewConfig(size=64, symmetries="all", local_views=1, local_size=32, reference=True)


def recipe_of(name: str, tiles: Path, run: Path, **changes: object) -> Recipe:
    return tiny_recipe(tiles, run, **({"method": METHODS[name], "views": VIEWS} | changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_resumes_exactly(tiles: Path, tmp_path: Path, name: str) -> None:
    whole = pretrain(recipe_of(name, tiles, tmp_path / "whole", steps=4))
    halves = stopped(recipe_of(name, tiles, tmp_path / "halves", steps=4), 3)  # concepts count from step 2 on
    pretrain(halves, resume=True)
    same_run(whole, tmp_path / "halves")
    if "concl" in name:
        assert [row["concepts"] > 0 for row in read_journal(whole)] == [False, False, True, True]


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_stays_near(name: str) -> None:
    """Lightning has no 16-mixed on a CPU; autocast itself does."""
    torch.manual_seed(0)
    plain = build_method(recipe_of(name, Path(), Path()))
    smooth = torch.nn.functional.interpolate(256 * torch.rand(4, 3, 6, 6), 64, mode="bicubic").clamp(0, 255).byte()
    batch = sample_views(smooth, VIEWS, epoch=5)
    losses = []
    for dtype in (None, torch.float16, torch.bfloat16):
        method = copy.deepcopy(plain)
        torch.manual_seed(0)  # of the keys' shuffle
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = method(batch).total()
        (1024 * loss).backward()
        assert loss.dtype == torch.float32
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
        losses.append(loss.item())
    assert losses[1:] == [pytest.approx(losses[0], rel=0.02)] * 2 and losses[0] not in losses[1:]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("plm", {"dense": 1.5}),
        ("plm", {"momentum": 1.0}),
        ("plm", {"temperature": 0.0}),
        ("plm", {"queue_length": 0}),
        ("plm", {"norm_group": 1}),
        ("vicregl", {"alpha": 2.0}),
        ("vicregl", {"variance": -1.0}),
        ("vicregl", {"best": 0}),
        ("vicregl", {"width": 0}),
        ("concl", {"concepts": 0}),
        ("prototypes", {"prototypes": 1}),
        ("prototypes", {"temperature": 0.0}),
        ("prototypes", {"momentum": 1.0}),
        ("prototypes", {"iterations": 0}),
        ("prototypes", {"memory": -1}),
        ("distil", {"relations": -1.0}),
        ("distil", {"norm_group": 1}),
        ("distil", {"mean": (0.5, 0.5, 0.5)}),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^method(\.|: )"):
        replace(METHODS[name], **wrong)


def test_float16_on_a_cpu_is_refused(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16-mixed needs a GPU: give --precision 32 or bf16-mixed"):
        pretrain(recipe_of("plm", tiles, tmp_path / "run", precision="16-mixed"))


@pytest.mark.parametrize("name", METHODS)
def test_one_tile_a_device(name: str) -> None:
    method = build_method(recipe_of(name, Path(), Path()))
    tile = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for epoch in (0, 5):
        batch = sample_views(tile, replace(VIEWS, local_views=0), epoch=epoch)
        if "vicregl" in name:
            with pytest.raises(UserError, match="2 or more tiles per device"):
                method(batch)
            return
        loss = method(batch).total()
        loss.backward()
        assert math.isfinite(loss.item())


def test_a_run_takes_one_tile_a_step(tiles: Path, tmp_path: Path) -> None:
    run = pretrain(recipe_of("plm", tiles, tmp_path / "run", batch=1, steps=2, views=replace(VIEWS, local_views=0)))
    assert all(math.isfinite(row["loss"]) for row in read_journal(run))


def test_a_single_cell_cannot_be_normalised(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a single view of 32 x 32 px is one cell .* larger"):
        pretrain(recipe_of("plm", tiles, tmp_path / "run", batch=1, steps=2))


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_has_a_gradient_at_every_epoch(name: str) -> None:
    method = build_method(recipe_of(name, Path(), Path()))
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    for epoch in (0, 5):
        method.zero_grad()
        method(sample_views(images, VIEWS, epoch=epoch)).total().backward()
        learning = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert learning == []  # DDP waits for each of them


@pytest.mark.parametrize("name", METHODS)
def test_a_queue_is_full_of_different_keys_when_the_method_says(name: str) -> None:
    method = build_method(tiny_recipe(Path(), Path(), method=METHODS[name]))
    forwards = METHODS[name].filling(8)
    queue = getattr(method, "past_wholes", None) or getattr(getattr(method, "moco", None), "past_wholes", None)
    assert (queue is None) == (forwards == 0)
    if queue is None:
        return
    for turn in range(1, forwards + 1):
        tiles = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
        method(sample_views(tiles, ViewConfig(64, reference="concl" in name), epoch=turn))
        different = len(queue.vectors.unique(dim=0))
        assert (different == len(queue.vectors)) == (turn == forwards)
