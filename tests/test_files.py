"""Files are whole or not there, and a folder that takes none is refused in a sentence before the work."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colocate.base.errors import UserError
from colocate.base.files import check_writable, write_atomically
from colocate.cli.main import main
from colocate.predict.predict import PredictConfig, predict
from colocate.predict.predictor import DeviceConfig
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.predict.seen import FINDER, slide_of


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
    slide = str(write_pyramid(tmp_path / "slide.tif", tissue_slide(256)[0], 1.0))
    random = ["random", slide, "--architecture", "test_resnet", "--mpp", "1", "--size", "64", "--accelerator", "cpu"]
    with pytest.raises(SystemExit):
        main(["tile", slide, str(out)] if name == "tile" else ["features", *random, "--out", str(out)])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"colocate: {out} cannot be written (")
    assert said[0].endswith("): choose another folder, or mend this one")
    assert (tmp_path / "file").read_text() == "the user's own"


def test_predictions_refuse_it_before_any_window_is_seen(out: Path, tmp_path: Path) -> None:
    def look(windows: Any) -> Any:
        raise AssertionError("nobody can keep what is seen")

    slide = slide_of(tmp_path, np.zeros((64, 64), np.int32))
    config = PredictConfig(device=DeviceConfig(accelerator="cpu", workers=0))
    with pytest.raises(UserError, match=f"{out} cannot be written .*: choose another folder"):
        predict(replace(FINDER, look=look), [slide], out, config)


def test_a_file_that_cannot_be_written_is_named_with_the_remedy(out: Path) -> None:
    with pytest.raises(UserError, match=f"{out}/a.csv was not written: .*; mend this, the same command goes on"):
        write_atomically(out / "a.csv", lambda file: file.write(b"x"))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    def full(file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "a.csv", lambda file: file.write(b"before"))
    with pytest.raises(UserError, match=r"a\.csv was not written: the disk is full; make room"):
        write_atomically(tmp_path / "a.csv", full)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.csv", b"before")]
