"""The same files from a Dask cluster, also when one of its workers is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from colocate.base.errors import UserError
from colocate.slides import tile as work
from colocate.slides.listing import Listed, find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.tile import tile
from tests.phantom_slide import write_slides

CONFIG = TilingConfig(mpp=2.0, size=64, min_sharpness=0.5)


def kill_once(slide: Listed, config: TilingConfig, out: Path, *how: Any) -> int | str | None:
    """The task, but the first worker to meet the second slide dies of it, half a shard written."""
    mark = out.parent / "killed"
    if slide.name == "s1" and not mark.exists():
        mark.touch()
        half = out / "shards" / f".s1-0000.tar.{'0123456789abcdef' * 2}.tmp"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    return ORDINARY(slide, config, out, *how)


ORDINARY = work._task


@pytest.mark.slow
def test_a_worker_killed_halfway_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiling.test_tile import files  # not above: each worker imports this module, and then torch

    distributed = pytest.importorskip("distributed")
    slides = find_slides([write_slides(tmp_path / "slides", 3, 384)])
    tile(slides, tmp_path / "here", CONFIG, workers=1)
    monkeypatch.setattr(work, "_task", kill_once)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp"
    ) as cluster:
        done = tile(slides, tmp_path / "cluster" / "out", CONFIG, scheduler=cluster.scheduler_address)
    assert (tmp_path / "cluster" / "killed").exists() and done.failed == 0
    assert files(tmp_path / "cluster" / "out") == files(tmp_path / "here")


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "WAIT_S", 1)
    (tmp_path / "s.svs").touch()
    with pytest.raises(UserError, match="no Dask scheduler answers there"):
        tile(find_slides([tmp_path]), tmp_path / "out", CONFIG, scheduler="tcp://127.0.0.1:9")
