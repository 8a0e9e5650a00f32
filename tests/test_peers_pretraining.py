"""Watching a peer's training from outside: pace, memory, resuming, and who outlives a kill."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers.pretraining import PEERS, table
from benchmarks.peers.pretraining.commands import WAYS, Job, read_csv, read_jsonl, read_metrics
from benchmarks.peers.pretraining.watch import Step, watch
from colocate.base.errors import UserError

TRAINING = """
import json, subprocess, sys, time
from pathlib import Path
journal, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
held = bytearray(200_000_000)
held[::4096] = b"1" * len(held[::4096])
subprocess.Popen(["sleep", "60"]) if len(sys.argv) > 4 else None
for number in range(first, last + 1):
    time.sleep(0.25)
    with journal.open("a") as file:
        file.write(json.dumps({"number": number, "loss": 1 / number, "waiting": 0.5}) + "\\n")
"""


def test_pace_waiting_and_memory_are_those_of_the_training(tmp_path: Path) -> None:
    journal = tmp_path / "steps.jsonl"
    seen = watch([sys.executable, "-c", TRAINING, journal, "1", "8"], journal, read_jsonl, 1, {})
    figures = seen.pace(batch=10, warm=2)
    assert 0 < figures["pairs_per_s"] <= 10 / 0.25  # a busy machine makes it slower, nothing faster
    assert figures["waiting_percent"] == 50
    assert 200 < figures["peak_mb"] < 260
    assert figures["core_ms_per_pair"] < 5  # it sleeps
    assert 0.25 <= figures["first_step_s"] < seen.ended_s[2]


@pytest.mark.slow
def test_a_killed_run_leaves_its_children_and_its_lines_are_not_the_next_ones(tmp_path: Path) -> None:
    journal = tmp_path / "steps.jsonl"
    killed = watch(
        [sys.executable, "-c", TRAINING, journal, "1", "50", "child"], journal, read_jsonl, 1, {}, kill_after=2
    )
    assert killed.orphans == 1
    assert 2 in killed.steps and max(killed.steps) < 50
    after = watch([sys.executable, "-c", TRAINING, journal, "2", "4"], journal, read_jsonl, 1, {})
    assert sorted(after.steps) == [2, 3, 4]


def test_a_training_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tiles here"):
        watch([sys.executable, "-c", "raise SystemExit('no tiles here')"], tmp_path / "none", read_jsonl, 1, {})


def test_journals_are_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    two = [Step(1, 2.5, 0.0), Step(2, 1.5, 0.25)]
    lines = {
        read_csv: "step,loss,waiting,crowded\n1,2.5,0,0.1\n2,1.5,0.25,0.2\n3,1.2",
        read_jsonl: "".join(json.dumps(step._asdict()) + "\n" for step in two) + '{"numb',
        read_metrics: '{"lr": 1, "step": 0}\n{"train_loss": 2.5, "profiling/batch_time": 3, "step": 0}\n'
        '{"train_loss": 1.5, "profiling/batch_time": 3, "profiling/data_time": 1, "step": 1}\n{"train_l',
    }
    for read, text in lines.items():
        path = tmp_path / "journal"
        path.write_text(text)
        assert read(path) == two


def test_every_peer_has_a_way_that_names_what_all_share() -> None:
    assert {peer.name for peer in PEERS} == set(WAYS)
    job = Job("densecl", Path("TILES"), Path("RUN"), size=72, batch=24, steps=77, workers=3)
    for way in WAYS.values():
        words = " ".join(map(str, way.command(Path("bin/python"), job)))
        assert all(word in words for word in ("TILES", "RUN", "72", "24", "77", "3")), words


def test_the_table_holds_the_latest_figure_of_each_case() -> None:
    row = {"peer": "lightly", "case": "pace", "method": "densecl", "threads": 1, "workers": 0, "precision": "32"}
    rows = [row | {"pairs_per_s": 11.0}, row | {"pairs_per_s": 22.0}, {"peer": "other", "error": "does not install"}]
    text = "\n".join(table(rows))
    assert "22.0" in text and "11.0" not in text and "does not install" in text
