"""Which features feed which column of the journal, on features made by hand."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch

from colocate.base.errors import UserError
from colocate.core.geometry import Crop
from colocate.core.views import Batch, View
from colocate.methods.method import Losses
from colocate.methods.moco import MoCo
from colocate.models.encoder import Features
from colocate.training.diagnostics import effective_rank, first_warning, measure, warning, within_tile
from colocate.training.journal import (
    COLUMNS,
    Journal,
    ProgressBar,
    Throughput,
    check_terms,
    read_journal,
    read_rows,
    trackers,
)
from colocate.training.loop import pretrain
from tests.notebooks import executed
from tests.tiny import tiny_recipe

SAME = Crop.of([[0, 0, 8, 8]] * 4)


def losses_of(whole: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> Losses:
    zero = torch.zeros(())
    return Losses({"whole": zero}, Features(whole, None, query, (2, 2)), Features(whole, None, key, (2, 2)))


def batch_of(first: Crop, second: Crop) -> Batch:
    pixels = torch.zeros(4, 3, 2, 2)
    return Batch(View(pixels, first), View(pixels, second), torch.arange(4))


def test_each_column_measures_what_it_says() -> None:
    cells = torch.eye(4).repeat(4, 1, 1)  # each tile's four cells are four directions, the same in every tile
    whole = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [-1, 1, 1, -1], [-1, -1, 1, 1]])
    measures = measure(losses_of(whole, cells, cells), batch_of(SAME, SAME))
    twice, same = torch.cat([whole, whole]), Crop.of([[0, 0, 8, 8]] * 8)
    eight = Batch(View(torch.zeros(8, 3, 2, 2), same), View(torch.zeros(8, 3, 2, 2), same), torch.arange(8))
    measures |= {"effective_rank": measure(losses_of(twice, *[torch.cat([cells] * 2)] * 2), eight)["effective_rank"]}
    assert measures["overlap"] == 1 and measures["correspondence"] == 1
    assert measures["correspondence_chance"] == pytest.approx(0.25)
    assert measures["within_tile"] == pytest.approx(1.0)
    assert measures["effective_rank"] == pytest.approx(1.0)  # the tiles' mean cells are one and the same
    assert measures["feature_std"] == pytest.approx(math.sqrt(4 / 3) * 0.75, rel=1e-5)  # one of four columns is still


def test_correspondence_follows_the_crops() -> None:
    """The second view is the first one mirrored: equal cells at equal numbers are then not the same tissue."""
    cells, mirrored = torch.eye(4).repeat(4, 1, 1), SAME._replace(cols=SAME.cols.flip(1))
    losses = losses_of(torch.randn(4, 8), cells, cells)
    assert measure(losses, batch_of(SAME, mirrored))["correspondence"] == 0
    turned = replace_key(losses, cells[:, [1, 0, 3, 2]])
    assert measure(turned, batch_of(SAME, mirrored))["correspondence"] == 1
    apart = measure(losses, batch_of(SAME, Crop.of([[8, 8, 16, 16]] * 4)))
    assert math.isnan(apart["correspondence"]) and apart["overlap"] == 0


def test_a_network_that_knows_only_places_is_found_out() -> None:
    """Where tissue moved by half a cell a cell still overlaps its own place, where by a whole one never."""
    places = torch.eye(4).repeat(4, 1, 1)  # a cell is its place in the view, whatever it shows
    losses = losses_of(torch.randn(4, 8), places, places)
    part, whole = (Crop.of([[top, 0, top + 8, 8]] * 4) for top in (2, 4))  # half a cell down, a whole cell down
    assert measure(losses, batch_of(SAME, part))["correspondence"] == 1
    assert math.isnan(measure(losses, batch_of(SAME, part))["displaced"])
    moved = measure(losses, batch_of(SAME, whole))
    assert moved["displaced"] == moved["correspondence"] == 0 and moved["displaced_chance"] == pytest.approx(0.25)
    tissue = replace_key(losses, places[:, [2, 3, 0, 1]])  # what the lower row showed, the upper one shows now
    assert measure(tissue, batch_of(SAME, whole))["displaced"] == 1
    mirrored = SAME._replace(cols=SAME.cols.flip(1))
    assert measure(replace_key(losses, places[:, [1, 0, 3, 2]]), batch_of(SAME, mirrored))["displaced"] == 1


def replace_key(losses: Losses, field: torch.Tensor) -> Losses:
    return losses._replace(key=losses.key._replace(field=field))


def test_one_tile_gives_no_nonsense() -> None:
    assert effective_rank(torch.randn(1, 8)) == 1
    assert within_tile(torch.randn(1, 4, 8)) == pytest.approx(1.0)
    flat = {"feature_std": 0.0, "effective_rank": 1.0}  # one tile has no deviation, and is no collapse
    assert warning(flat, batch=1) is None and warning(flat, batch=2) is not None


def test_two_tiles_a_device_are_too_few_to_look_collapsed() -> None:
    """The rank of two is 1, whatever they show; a batch of several devices is no sign that there are more."""
    for tiles, known in ((1, (False, False)), (2, (True, False)), (7, (True, False)), (8, (True, True))):
        cells = torch.randn(tiles, 4, 16)
        crop = Crop.of([[0, 0, 8, 8]] * tiles)
        view = View(torch.zeros(tiles, 3, 2, 2), crop)
        measures = measure(losses_of(torch.randn(tiles, 16), cells, cells), Batch(view, view, torch.arange(tiles)))
        assert tuple(math.isfinite(measures[name]) for name in ("feature_std", "effective_rank")) == known
        assert warning(measures, batch=64) is None and first_warning([{"step": 1.0} | measures], batch=64) is None


def test_a_loss_term_may_not_be_called_as_a_column_of_the_journal(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiles, tmp_path / "run", steps=1)
    (row,) = read_journal(pretrain(recipe))
    assert {*row} - {"whole", "cells"} == {*COLUMNS} - ({"crowded"} - {*row})
    known, called = MoCo.forward, {"whole": ""}

    def renamed(method: MoCo, batch: Batch) -> Losses:
        losses = known(method, batch)
        return losses._replace(terms={called.get(name, name): term for name, term in losses.terms.items()})

    for name in ("loss", "grad_norm", "step", "epoch", "a,b", 'a"', "", "a\nb"):
        with pytest.raises(UserError, match=r"the method calls a term of its loss .*: give it another name"):
            check_terms([name])
    monkeypatch.setattr(MoCo, "forward", renamed)
    called["whole"] = "overlap"
    with pytest.raises(UserError, match="calls a term of its loss 'overlap', which is a column of the journal already"):
        pretrain(replace(recipe, out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
    called["whole"] = "nt-xent 0.1"
    (row,) = read_journal(pretrain(replace(recipe, out=str(tmp_path / "other"))))
    assert row["loss"] == pytest.approx(row["nt-xent 0.1"] + row["cells"], rel=1e-4)


def test_collapse_is_warned_of() -> None:
    fine = {"feature_std": 0.8, "effective_rank": 9.0}
    assert warning(fine, batch=64) is None
    assert "std 0.05" in (warning(fine | {"feature_std": 0.05}, batch=64) or "")
    assert "rank 1.2" in (warning(fine | {"effective_rank": 1.2}, batch=64) or "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts it")
def test_a_crowded_machine_is_told_from_slow_data(capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # which the child inherits
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)  # until it is there
        pace, until = Throughput(), time.perf_counter() + 0.5
        while time.perf_counter() < until:
            pace.count += 1
        row = pace.read()
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)
    assert row["waiting"] == 0 and 0.25 < row["crowded"] <= 1  # half, of a machine with nothing else to do
    ProgressBar(10, 0, shown=True).show(1, row | {"loss": 1.0})
    assert "machine busy" in capsys.readouterr().err


def test_tensorboard_has_each_step_once_after_a_crash(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4)), (0, (1, 2))):  # at last without a checkpoint
        journal = Journal(tmp_path / "journal.csv", start)
        with trackers(("tensorboard",), tmp_path, {}) as (log,):
            for step in steps:
                row = {"loss": 10.0 * start + step}
                journal.write(step, row)
                log(row, step)
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        kept = [(row["step"], row["loss"]) for row in read_rows(journal.path)]
        assert [(event.step, event.value) for event in events.Scalars("loss")] == kept


@pytest.mark.slow
def test_a_notebook_shows_a_bar() -> None:
    cell = nbformat.v4.new_code_cell(
        "from colocate.training.journal import ProgressBar\n"
        "with ProgressBar(3, 0, shown=True) as bar:\n"
        "    for step in (1, 2, 3):\n"
        "        bar.show(step, {'loss': 0.5, 'pairs_per_s': 9.0, 'waiting': 0.0})\n"
    )
    seen = executed(nbformat.v4.new_notebook(cells=[cell]), timeout=60, kernel_name="python3")
    widget = seen.cells[0].outputs[0].data["application/vnd.jupyter.widget-view+json"]["model_id"]
    states = seen.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    (shown,) = states[widget]["state"]["outputs"]  # which is drawn over, not added to
    assert "3/3" in shown["data"]["text/plain"] and "loss 0.500" in shown["data"]["text/plain"]
