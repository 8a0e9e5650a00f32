"""Compiled encoders and views made ahead compute what the plain path computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from colocate.core.views import Batch, View, sample_views
from colocate.data.loader import Tiles
from colocate.models.encoder import Encoder
from colocate.training.journal import read_journal
from colocate.training.loop import build_method, prefetch_views, pretrain
from colocate.training.optim import OptimConfig, build_optimizer
from tests.tiny import METHODS, MOCO, tiny_recipe


@pytest.fixture(scope="module")
def plain(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that is not compiled."""
    return pretrain(tiny_recipe(tiles, tmp_path_factory.mktemp("plain") / "run", steps=3))


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(tiles: Path, plain: Path, tmp_path: Path) -> None:
    """Batch norm in groups, shuffled keys and all; the backbone keeps its names and its count of batches."""
    compiled = pretrain(tiny_recipe(tiles, tmp_path / "compiled", steps=3, compile=True))
    for one, other in zip(read_journal(plain), read_journal(compiled), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    states = [
        torch.load(run / "checkpoints" / "step000000003.pt", weights_only=True)["method"] for run in (plain, compiled)
    ]
    assert states[0].keys() == states[1].keys()
    counts = [{key: int(value) for key, value in state.items() if "num_batches" in key} for state in states]
    assert counts[0] == counts[1] and set(counts[0].values()) == {3}


def test_where_compiling_fails_the_run_is_the_plain_one(
    tiles: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Encoder, **options: Any) -> None:
        def fail(*args: Any) -> None:
            raise RuntimeError("no C++ compiler\nand many more lines")

        self._compiled_call_impl = fail

    monkeypatch.setattr(Encoder, "compile", broken)
    run = pretrain(tiny_recipe(tiles, tmp_path / "compiled", steps=3, compile=True))
    said = capsys.readouterr().err
    assert said.count("compiling failed, so networks run as they are (RuntimeError: no C++ compiler)") == 1
    assert [row["loss"] for row in read_journal(run)] == [row["loss"] for row in read_journal(plain)]


def numbered(count: int) -> list[tuple[int, Tiles]]:
    made = []
    for turn in range(count):
        images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(turn))
        sizes, index = torch.tensor([64, 64]).expand(4, 2), torch.arange(4) + 4 * turn
        made.append((turn, Tiles(images, sizes, index, torch.full((4,), torch.nan), ())))
    return made


def views(turn: int, tiles: Tiles, images: Tensor) -> Batch:
    return sample_views(images, epoch=turn, index=tiles.index, sizes=tiles.sizes)


def same(one: View, other: View) -> bool:
    return torch.equal(one.images.cpu(), other.images.cpu()) and torch.equal(one.crop.rows, other.crop.rows)


def test_views_come_in_order_and_no_earlier_than_asked_for() -> None:
    taken: list[int] = []
    source = numbered(4)
    made = prefetch_views((taken.append(turn) or (turn, tiles) for turn, tiles in source), views, torch.device("cpu"))
    for turn, tiles, batch in made:
        assert tiles is source[turn][1] and taken == list(range(turn + 1))
        assert same(batch.first, views(turn, tiles, tiles.images).first)
    assert taken == [0, 1, 2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_made_beside_a_step_are_the_same() -> None:
    """The step overwrites freed memory meanwhile; views of a later batch must not land in one that is still read."""
    device = torch.device("cuda")
    method = build_method(tiny_recipe(Path(), Path(), method=MOCO)).to(device)
    for turn, tiles, batch in prefetch_views(iter(numbered(20)), views, device):
        wanted = views(turn, tiles, tiles.images.to(device))
        for _ in range(3):
            method(batch).total().backward()
        assert same(batch.first, wanted.first) and same(batch.second, wanted.second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", METHODS)
def test_the_host_waits_for_no_step(name: str) -> None:
    """What a step asks of the GPU, it asks without looking at a result; logging does, every few steps."""
    device = torch.device("cuda")
    method = build_method(tiny_recipe(Path(), Path(), method=METHODS[name])).to(device)
    optimizer = build_optimizer(OptimConfig(), method)
    batches = ((turn, tiles._replace(images=tiles.images.pin_memory())) for turn, tiles in numbered(6))
    for turn, _, batch in prefetch_views(batches, views, device):
        torch.cuda.set_sync_debug_mode("error" if turn > 2 else "default")
        try:
            method(batch).total().backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
