"""`colocate prepare` as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from colocate.base.text import Terminal
from colocate.cli.main import main
from colocate.datasets.labelled import Labelled
from colocate.datasets.nct import TISSUES
from colocate.datasets.prepare import CONVERTERS, Kind
from colocate.evaluation.protocol import instances_for
from colocate.evaluation.settings import InstancesConfig
from tests.prepare.releases import write_folder, write_glas, write_nct
from tests.test_cli import sentence


def test_glas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = write_glas(tmp_path / "src"), tmp_path / "out"
    main(["prepare", "glas", str(src), str(out)])
    said = capsys.readouterr().out
    for words in (
        "glas: 165 images, 16 cases, 1,530 objects\n",
        "split official: 85 train, 60 testA, 20 testB (16 cases on both sides)\n",
        "terms: For research only",
        "note: The official split of GlaS has patients on both sides",
        f"done: look at {out}/contact-sheet.png\n",
    ):
        assert words in said
    assert len(Labelled.open(out)) == 165 and instances_for(Labelled.open(out)) == InstancesConfig()
    assert "exists and is not an empty folder" in sentence(capsys, "prepare", "glas", src, out)
    swapped = sentence(capsys, "prepare", "glas", tmp_path / "new", src)
    assert swapped.endswith("new does not exist: give SRC, the files as released, then OUT")


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


def test_nct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = write_nct(tmp_path / "NCT-CRC-HE-100K", TISSUES), tmp_path / "nct.csv"
    main(["prepare", "nct-crc-he", str(src), str(out)])
    assert f"done: pretrain with --data {out}" in capsys.readouterr().out


def test_options_of_other_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = write_glas(tmp_path / "src", {"train": 2})
    says = sentence(capsys, "prepare", "glas", src, tmp_path / "out", "--ignored", "0", "--semantics")
    assert says == "colocate: glas has no use for --semantics, --ignored: leave that out"
    assert not (tmp_path / "out").exists()


def test_every_kind_can_be_asked_for() -> None:
    assert set(get_args(Kind)) == {*CONVERTERS, "nct-crc-he"}


@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\x07", "\x9b1m", "\u202e", "\x7f"])
def test_a_terminal_obeys_no_name(sign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files and classes are shown with escapes: in what is printed, in progress and in errors."""
    src = write_folder(tmp_path / f"mine{sign}", 2)
    main(["prepare", "folder", str(src), str(tmp_path / f"out{sign}"), "--classes", f"a{sign}b"])
    Terminal().say(f"note: {sign}.svs is left out")
    with pytest.raises(SystemExit):
        main(["prepare", "folder", str(src), str(tmp_path / f"out{sign}")])
    said = capsys.readouterr()
    shown = ascii(sign)[1:-1]
    assert sign not in said.out + said.err
    assert f"mine{shown}: 2 images" in said.out and f"a{shown}b" in said.out
    assert f"out{shown} exists" in said.err.replace("\n", "") and f"note: {shown}.svs" in said.err
