"""`colocate prepare` as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from colocate.base.text import Terminal
from colocate.cli.main import main
from colocate.datasets.labelled import Labelled
from colocate.datasets.prepare import CONVERTERS, Kind
from colocate.evaluation.protocol import instances_for
from tests.prepare.releases import write_folder, write_glas
from tests.test_cli import sentence


def test_a_folder_with_options(tmp_path: Path) -> None:
    src, out = write_folder(tmp_path / "src"), tmp_path / "out"
    words = ["--semantics", "--classes", "a", "b", "c", "d", "--ignored", "0", "--mpp", "0.5", "--test-share", "0.4"]
    main(["prepare", "folder", str(src), str(out), *words])
    data = Labelled.open(out)
    assert (data.classes, data.ignored, len(data.test("images"))) == (("a", "b", "c", "d"), 0, 2)


@pytest.mark.parametrize("name", ["glas", "crag"])
def test_a_folder_that_is_called_as_a_release_is_none(name: str, tmp_path: Path) -> None:
    src = write_folder(tmp_path / name)
    main(["prepare", "folder", str(src), str(tmp_path / "own")])
    main(["prepare", "folder", str(src.rename(tmp_path / "mine")), str(tmp_path / "other")])
    own, other = (Labelled.open(tmp_path / out) for out in ("own", "other"))
    assert (own.name, other.name) == (name, "mine") and instances_for(own) == instances_for(other)


def test_words_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = write_glas(tmp_path / "src", {"train": 2}), tmp_path / "out"
    says = sentence(capsys, "prepare", "glas", src, out, "--ignored", "0", "--semantics")
    assert says == "colocate: glas has no use for --semantics, --ignored: leave that out"
    swapped = sentence(capsys, "prepare", "glas", out, src)
    assert swapped.endswith("out does not exist: give SRC, the files as released, then OUT")
    assert not out.exists()


def test_every_kind_can_be_asked_for() -> None:
    assert set(get_args(Kind)) == {*CONVERTERS, "nct-crc-he"}


def test_a_terminal_obeys_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files and classes are shown with escapes: in what is printed, in progress and in errors."""
    signs = ["\x1b[2J", "\r", "\x07", "\x9b1m", "\u202e", "\x7f"]
    name = "".join(signs)
    src = write_folder(tmp_path / f"mine{name}", 2)
    main(["prepare", "folder", str(src), str(tmp_path / f"out{name}"), "--classes", f"a{name}b"])
    Terminal().say(f"note: {name}.svs is left out")
    with pytest.raises(SystemExit):
        main(["prepare", "folder", str(src), str(tmp_path / f"out{name}")])
    said = capsys.readouterr()
    shown = ascii(name)[1:-1]
    assert [sign for sign in signs if sign in said.out + said.err] == []
    assert f"mine{shown}: 2 images" in said.out and f"a{shown}b" in said.out
    assert f"out{shown} exists" in said.err.replace("\n", "") and f"note: {shown}.svs" in said.err
