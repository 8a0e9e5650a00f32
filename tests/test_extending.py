"""docs/how-to/own-method.md is true: its files run by its commands, and its SimCLR is the paper's."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from jaxtyping import install_import_hook
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from colocate import load_backbone
from colocate.cli.main import main
from colocate.core.geometry import Crop
from colocate.core.matching import overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import Batch, View, sample_views
from colocate.methods.rules import MostSimilar, Overlap
from colocate.models.encoder import Features
from colocate.training.loop import build_method
from colocate.training.recipe import read_recipe
from tests import checked
from tests.reference.overlap import overlap_matrix, pooled
from tests.test_distributed import state_after, together
from tests.test_train import same_run, stop_at
from tests.tiny import each_view, tiny_recipe, write_tiles

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "own-method.md").read_text()
FILES = dict(re.findall(r"`(\w+\.py)`[^`]*\n\n```python\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^colocate (.*)$", PAGE, re.MULTILINE)
TINY = "--backbone test_resnet --views.size 64 --batch 8 --steps 4 --workers 0 --accelerator cpu --journals"
TINY += " --log-every 1 --save-every 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, and the tiles that its commands name."""
    here = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (here / name).write_text(text)
    write_tiles(here / "TILES")
    return here


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> Path:
    """Where the page's commands have run, one after another; pretrainings, but for repeated ones, with tiny options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            if "--help" not in command:
                main(shlex.split(f"{command} {TINY}" if "--data" in command else command))
                forget()
    return folder


@pytest.fixture(scope="module")
def my_simclr(folder: Path) -> Iterator[ModuleType]:
    """The page's module, imported by name, its annotated shapes checked on every call."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with install_import_hook(["my_simclr", "my_rule"], f"{checked.__name__}.checker"):
            yield importlib.import_module("my_simclr")
        for name in {"my_simclr", "my_rule", "test_my_simclr"} & (set(sys.modules) - before):
            del sys.modules[name]


def forget() -> None:
    """As a new process: no file of the user's own is loaded."""
    for name in [name for name in sys.modules if name.startswith("colocate_outside_")]:
        del sys.modules[name]


def test_every_block_and_command_is_run() -> None:
    assert set(FILES) == {"my_simclr.py", "my_rule.py", "test_my_simclr.py"}
    assert len(FILES) == PAGE.count("```python")
    words = {command.split()[0] for command in COMMANDS}
    assert words == {"pretrain", "report", "export"} and len(COMMANDS) == PAGE.count("\ncolocate ")


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(ran: Path) -> None:
    recipe = read_recipe(ran / "RUN" / "recipe.json", trust=True)
    stored = json.loads((ran / "RUN" / "recipe.json").read_text())["method"]
    assert recipe.name == "simclr-overlap" and recipe.method.match == Overlap()
    assert stored["kind"] == f"{ran.resolve()}/my_simclr.py:SimCLRConfig" and stored["match"]["rule"] == "overlap"
    same_run(ran / "RUN", ran / "OTHER")  # repeated from recipe.json alone
    assert (ran / "RUN" / "report.html").stat().st_size > 10_000
    timm.create_model("test_resnet", num_classes=0).load_state_dict(torch.load(ran / "backbone.pth"), strict=False)
    rule = read_recipe(ran / "HALF" / "recipe.json", trust=True).method.match
    assert (type(rule).__name__, rule.least) == ("HalfSeen", 0.6)


def test_a_backbone_needs_no_file_of_the_method(ran: Path, tmp_path: Path) -> None:
    for name in ("backbone.safetensors", "backbone.json"):
        text = (ran / "RUN" / name).read_bytes().replace(str(ran).encode(), b"/nowhere")
        (tmp_path / name).write_bytes(text)
    assert load_backbone(tmp_path).facts["recipe"]["method"]["kind"] == "/nowhere/my_simclr.py:SimCLRConfig"
    main(["export", str(tmp_path), str(tmp_path / "backbone.pth")])


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(
    inside: Path, ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        stop_at(patch, 3)
        main(f"pretrain my_simclr.py:simclr_overlap --data TILES {TINY} --out {tmp_path}/halves".split())
    assert not (tmp_path / "halves" / "checkpoints" / "step000000004.pt").exists()
    forget()
    torch.manual_seed(99)
    main(["pretrain", "--from", f"{tmp_path}/halves/recipe.json", "--resume", "--trust"])
    same_run(ran / "RUN", tmp_path / "halves")


def test_a_module_runs_as_a_file_does(
    inside: Path, ran: Path, tmp_path: Path, my_simclr: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(f"pretrain my_simclr:simclr_overlap --data TILES {TINY} --out {tmp_path}/run".split())
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["method"]["kind"] == "my_simclr:SimCLRConfig"
    same_run(ran / "RUN", tmp_path / "run")


def test_every_option_is_explained(inside: Path, my_simclr: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(shlex.split(next(command for command in COMMANDS if "--help" in command)))
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in fields(my_simclr.SimCLRConfig):
        said = re.search(rf'{field.name}: .*\n    """(.*)"""', FILES["my_simclr.py"])
        assert said is not None
        assert field.name == "match" or (f"--method.{field.name}" in text and said[1] in text)
    assert "--method.match.weighted" in text


def built(module: ModuleType, **changes: Any) -> Any:
    config = replace(module.SimCLRConfig(match=Overlap(), dense=0.3, hidden=16, width=8), **changes)
    return build_method(tiny_recipe(Path(), Path(), method=config)).double().eval()  # batch statistics stay


def batch_of(count: int = 5, seed: int = 0, part: slice = slice(None)) -> Batch:
    tiles = torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = sample_views(tiles, ViewConfig(size=96, symmetries="all"), seed=seed)
    batch = each_view(batch, lambda view: View(view.images[part].double(), view.crop.select(part)))
    return batch._replace(tiles=batch.tiles[part])


def in_double(patch: pytest.MonkeyPatch) -> None:
    """Let nt_xent, from now on, compute in the double precision of what it is given."""
    patch.setattr(Tensor, "float", lambda same: same)


def similar(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm())


def plain_nt_xent(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Equation 1 of the paper, loop by loop: views 2k and 2k + 1 are of one tile."""
    views = [view for pair in zip(x, y, strict=True) for view in pair]

    def term(i: int, j: int) -> Tensor:
        others = [(similar(views[i], views[k]) / temperature).exp() for k in range(len(views)) if k != i]
        return -((similar(views[i], views[j]) / temperature).exp() / torch.stack(others).sum()).log()

    return torch.stack([term(i, i ^ 1) for i in range(len(views))]).mean()


def plain_dense(batch: Batch, x: Features, y: Features, temperature: float) -> Tensor:
    """Every cell of either view against its tissue in the other, and the pooled views of other tiles."""
    assert x.cells is not None and y.cells is not None
    rows = []
    sides = [(batch.first, batch.second, x, y), (batch.second, batch.first, y, x)]
    means = torch.stack([x.cells.mean(1), y.cells.mean(1)], 1)  # tile, view, d
    for own, other, mine, theirs in sides:
        shares = overlap_matrix(own.crop, other.crop, mine.grid, theirs.grid)
        partners = pooled(shares, theirs.cells)
        for tile in range(len(batch.tiles)):
            negatives = torch.cat([means[:tile], means[tile + 1 :]]).flatten(0, 1)
            for i, cell in enumerate(mine.cells[tile]):
                weight = float(shares[tile, i].sum())
                up = (similar(cell, partners[tile, i]) / temperature if weight > 0 else 0 * cell.sum()).exp()
                down = up + torch.stack([(similar(cell, mean) / temperature).exp() for mean in negatives]).sum()
                rows.append(-weight * (up / down).log())
    return torch.stack(rows).mean()


def test_the_loss_is_the_papers(my_simclr: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = built(my_simclr), batch_of()
    plain = copy.deepcopy(method)
    in_double(monkeypatch)
    losses = method(batch)
    x, y = (plain.query(view.images) for view in (batch.first, batch.second))
    whole, cells = 0.7 * plain_nt_xent(x.whole, y.whole, 0.1), 0.3 * plain_dense(batch, x, y, 0.1)
    torch.testing.assert_close(losses.terms, {"whole": whole, "cells": cells})
    losses.total().backward()
    (whole + cells).backward()
    for (name, mine), theirs in zip(method.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_simclr_is_the_whole_term_alone(my_simclr: ModuleType) -> None:
    both, alone, batch = built(my_simclr, dense=0.0), built(my_simclr, match=None), batch_of()
    alone.load_state_dict(both.state_dict(), strict=False)
    losses = alone(batch)
    assert set(losses.terms) == {"whole"} and alone.query.cells is None
    torch.testing.assert_close(losses.total(), both(batch).total())
    similar, shared = (built(my_simclr, match=rule)(batch).terms["cells"] for rule in (MostSimilar(), Overlap()))
    assert not torch.equal(similar, shared)


def test_a_tile_is_no_negative_of_itself(my_simclr: ModuleType) -> None:
    mine, theirs = torch.randn(2, 6, 4, 8).unbind(0)
    tiles = torch.tensor([0, 1, 0, 1, 0, 0])  # a tile came twice, in place of one that could not be read
    of_the_first = torch.eye(6)[:, :1].expand(6, 4)
    few, six = (my_simclr.nt_xent(mine[:n], theirs[:n], tiles[:n], 0.1, of_the_first[:n]) * n for n in (4, 6))
    torch.testing.assert_close(few, six)
    assert my_simclr.nt_xent(mine, theirs, torch.zeros_like(tiles), 0.1) == 0


def test_the_loss_is_exact_under_autocast(my_simclr: ModuleType) -> None:
    mine, theirs, tiles = torch.randn(6, 4, 8), torch.randn(6, 4, 8), torch.arange(3).repeat(2)
    plain = my_simclr.nt_xent(mine, theirs, tiles, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(my_simclr.nt_xent(mine, theirs, tiles, 0.1), plain)


def test_views_that_share_nothing_give_no_dense_loss(my_simclr: ModuleType) -> None:
    method, batch = built(my_simclr), batch_of()
    left, right = (Crop.of([box] * 5) for box in ([0, 0, 96, 40], [0, 96, 96, 50]))
    losses = method(batch._replace(first=View(batch.first.images, left), second=View(batch.second.images, right)))
    assert losses.terms["cells"] == 0
    losses.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_half_seen_cells_alone_count(my_simclr: ModuleType) -> None:
    rule = importlib.import_module("my_rule").HalfSeen()
    first, second, *_ = batch_of()
    features = Features(torch.zeros(5, 8), None, torch.zeros(5, 9, 4), (3, 3))
    match, whole = rule(first, second, features, features), overlap(first.crop, second.crop, 3)
    seen = whole.weight >= 0.5
    assert 0 < int(seen.sum()) < int((whole.weight > 0).sum())
    assert torch.equal(match.weight, torch.where(seen, whole.weight, 0))


def test_the_pages_tests_pass(my_simclr: ModuleType) -> None:
    module = importlib.import_module("test_my_simclr")
    for name in ("test_every_parameter_gets_a_gradient", "test_swapping_the_views_changes_nothing"):
        getattr(module, name)()


def one_of_two(rank: int, folder: str, out: str) -> None:
    sys.path.insert(0, folder)
    method, half = built(importlib.import_module("my_simclr")), slice(4 * rank, 4 * rank + 4)
    batches = [batch_of(8, seed, half) for seed in range(3)]
    Tensor.float = lambda same: same  # type: ignore[method-assign]
    parallel = DistributedDataParallel(method, broadcast_buffers=False)
    torch.save(state_after(parallel, method, batches), f"{out}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_compute_what_one_does(
    folder: Path, my_simclr: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together(one_of_two, 2, str(folder), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    method, batches = built(my_simclr), [batch_of(8, seed) for seed in range(3)]
    in_double(monkeypatch)
    alone = state_after(method, method, batches)
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, alone["losses"])
    for name, tensor in alone["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], tensor, msg=name)
