"""Files are whole or not there, and a folder that takes none is refused in a sentence before the work."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save

from colocate.base import files
from colocate.base.errors import UserError
from colocate.base.files import absolute, check_writable, claimed, remove_unfinished, whole, write_atomically
from colocate.cli.main import main
from colocate.prediction.predict import predict
from colocate.prediction.settings import DeviceConfig, PredictConfig
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.predict.seen import FINDER, slide_of
from tests.tiny import UNIQUE


@pytest.fixture(params=["file", "file/below", "/proc/self/out"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file, a folder below one, and a folder of a file system on which nobody, not even root, may write."""
    (tmp_path / "file").write_text("the user's own")
    return tmp_path / request.param


def test_a_folder_that_takes_files_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("name", ["tile", "features"])
def test_commands_refuse_a_folder_that_cannot_be_written(
    name: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = str(write_pyramid(tmp_path / "slide.tif", tissue_slide(256, 1.0, 0)[0], 1.0))
    random = ["random", slide, "--architecture", "test_resnet", "--mpp", "1", "--size", "64", "--accelerator", "cpu"]
    with pytest.raises(SystemExit):
        main(["tile", slide, str(out)] if name == "tile" else ["features", *random, "--out", str(out)])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"colocate: {out} cannot be written (")
    assert said[0].endswith("): choose another folder, or mend this one")
    assert (tmp_path / "file").read_text() == "the user's own"


def test_predictions_refuse_it_before_any_window_is_seen(out: Path, tmp_path: Path) -> None:
    def look(windows: Any, tissue: Any) -> Any:
        raise AssertionError("nobody can keep what is seen")

    slide = slide_of(tmp_path, np.zeros((64, 64), np.int32))
    config = PredictConfig(device=DeviceConfig(accelerator="cpu", workers=0))
    with pytest.raises(UserError, match=f"{out} cannot be written .*: choose another folder"):
        predict(replace(FINDER, look=look), [slide], out, config)


def test_a_file_that_cannot_be_written_is_named_with_the_remedy(out: Path) -> None:
    with pytest.raises(UserError, match=f"{out}/a.csv was not written: .*; mend this, and the same command continues"):
        write_atomically(out / "a.csv", lambda file: file.write(b"x"))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    def full(file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "a.csv", lambda file: file.write(b"before"))
    with pytest.raises(UserError, match=r"a\.csv was not written: the disk is full; make room"):
        write_atomically(tmp_path / "a.csv", full)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.csv", b"before")]


@pytest.mark.parametrize("room", [0, 10, 1000, 100_000])
@pytest.mark.parametrize("kind", ["torch", "pickle", "safetensors", "parquet"])
def test_a_disk_that_is_full_is_named_whatever_library_writes(kind: str, room: int, tmp_path: Path) -> None:
    """Torch's writer of zip files tells of a position instead; files here may have no more bytes than the room."""
    numbers = torch.rand(100_000)
    write: dict[str, Callable[[Any], object]] = {
        "torch": lambda file: torch.save({"a": numbers, "b": numbers}, file),
        "pickle": lambda file: pickle.dump(numbers.numpy(), file),
        "safetensors": lambda file: file.write(save({"a": numbers})),
        "parquet": lambda file: parquet.write_table(pa.table({"a": numbers.numpy()}), file),
    }
    said, tell = os.pipe()
    process = os.fork()
    if not process:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            write_atomically(tmp_path / "out", write[kind])
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.waitpid(process, 0)
    remedy = "mend this, and the same command continues (pretrain: with --resume)"
    assert os.read(said, 10_000).decode() == f"UserError: {tmp_path}/out was not written: File too large; {remedy}"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """What a live one writes stays, and so do other hidden files."""
    (tmp_path / "deep").mkdir()
    for name in (f".a.{UNIQUE}.tmp", f"deep/.b.png.{UNIQUE}.tmp", "deep/.b.lock", ".hidden", "c.tmp", ".theirs.tmp"):
        (tmp_path / name).write_bytes(b"" if name.endswith(".lock") else b"half")
    process = os.fork()
    if not process:
        with whole(tmp_path / "deep" / "killed") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert len(list(tmp_path.rglob(".*.tmp"))) == 4
    with whole(tmp_path / "deep" / "whole") as file, claimed(tmp_path / "deep" / ".c.lock", wait=False):
        file.write(b"all")
        remove_unfinished(tmp_path)
        remove_unfinished(tmp_path)
        assert (tmp_path / "deep" / ".c.lock").exists()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", ".theirs.tmp", "c.tmp", "deep/whole"]
    assert (tmp_path / "deep" / "whole").read_bytes() == b"all"


def test_a_lock_is_of_one_process_and_ends_with_it(tmp_path: Path) -> None:
    lock, ready, told = tmp_path / "deep" / ".a.lock", *os.pipe()
    process = os.fork()
    if not process:
        with claimed(lock, wait=False) as mine:
            os.write(told, b"y" if mine else b"n")
            time.sleep(60)
    assert os.read(ready, 1) == b"y"
    with claimed(lock, wait=False) as mine:
        assert not mine
    with claimed(lock.with_name(".b.lock"), wait=False) as mine:
        assert mine
    os.kill(process, signal.SIGKILL)
    with claimed(lock, wait=True) as mine:
        assert mine and lock.exists()
    os.waitpid(process, 0)
    assert list(lock.parent.iterdir()) == []


def test_a_lock_that_is_anothers_by_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening a lock and locking it, its owner may leave, and another come."""
    lock = tmp_path / ".a.lock"
    first, second = claimed(lock, wait=False), claimed(lock, wait=False)
    assert first.__enter__()
    real = files.lock_descriptor

    def later(*words: Any, **options: Any) -> bool:
        monkeypatch.setattr(files, "lock_descriptor", real)
        first.__exit__(None, None, None)
        assert second.__enter__()
        return real(*words, **options)

    monkeypatch.setattr(files, "lock_descriptor", later)
    remove_unfinished(tmp_path)
    with claimed(lock, wait=False) as mine:
        assert not mine
    second.__exit__(None, None, None)


def test_many_processes_take_turns(tmp_path: Path) -> None:
    """None is in at the same time as another, though each removes the lock's file as it leaves."""
    processes = []
    for _ in range(4):
        if not (process := os.fork()):
            turns = 0
            try:
                for _ in range(5):
                    with claimed(tmp_path / ".lock", wait=True):
                        (tmp_path / "in").mkdir()  # fails where somebody is in
                        (tmp_path / "in").rmdir()
                        turns += 1
            finally:
                os._exit(turns)
        processes.append(process)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [5] * 4
    assert list(tmp_path.iterdir()) == []


def test_paths_lead_through_links_as_the_system_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = tmp_path / "far" / "inner", tmp_path / "near"
    for folder in (far, near, tmp_path / "far" / "tiles", tmp_path / "tiles"):
        folder.mkdir(parents=True)
    (near / "link").symlink_to(far)
    monkeypatch.chdir(near)
    assert absolute(Path("link/../tiles")) == tmp_path / "far" / "tiles"  # `os.path.abspath` says near/tiles
    assert absolute(Path("../tiles/./new")) == tmp_path / "tiles" / "new"
    assert absolute(Path("../near/link")) == near / "link" and absolute(Path("link")) == near / "link"
    assert absolute(Path("/..")) == Path("/")
