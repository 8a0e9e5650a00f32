"""Results on disk: found once each, kept apart where they must be, and refused in a sentence where they are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colocate.base.errors import UserError
from colocate.evaluation.results import Row, grouped, read_results
from colocate.evaluation.table import collect
from tests.evaluate.made import write_result


def rows(folder: Path) -> list[Row]:
    (one,) = grouped(read_results([folder]))
    return one


def test_copies_count_once_and_backbones_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_result(tmp_path / "a", backbone={"fingerprint": "0123456789"})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert rows(tmp_path)[0].seeds == (0,)
    assert len(rows(tmp_path / "a")) == 1
    write_result(tmp_path / "b", backbone={"fingerprint": "abcdefghij", "architecture": "resnet50"})
    assert [row.label for row in rows(tmp_path)] == ["plm 01234567", "plm abcdefgh"]
    write_result(tmp_path / "c", skill=0.9, backbone={"fingerprint": "abcdefghij", "architecture": "resnet50"})
    with pytest.raises(UserError, match=r"b/.*result\.json and .*c/.*result\.json are both plm, seed 0"):
        rows(tmp_path)


def test_random_weights_of_several_architectures_are_told_apart(tmp_path: Path) -> None:
    """Their fingerprints begin alike."""
    for n, name in enumerate(("resnet101", "resnet101d")):
        backbone = {"fingerprint": f"random {name}", "architecture": name}
        write_result(tmp_path / name, label="random", skill=0.3 + 0.4 * n, backbone=backbone)
    (table,) = collect([tmp_path])
    assert [row.label for row in table.rows] == ["random resnet101", "random resnet101d"]
    first, second = table.scores[0].intervals.values()
    assert all(first[name].mean != second[name].mean for name in table.headlines)


def changed(**fields: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_text('{"a": 1}'), r"result\.json is damaged or no result \(version: "),
        (lambda path: path.write_text("[1]"), r"result\.json is damaged or no result"),
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), r"result\.json is no result of .*, or is cut short"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), r"result\.json is no result of"),
        (Path.unlink, r"holds no result\.json: give folders"),
        (changed(version=2), r"it is of version 2, this colocate makes and reads 1\): evaluate again"),
        (changed(seed="first"), r"result\.json is damaged or no result \(seed: "),
        (changed(dataset={}), r"\(dataset.name: "),
        (changed(metrics=["beauty"]), r"scores of a kind that is not known, beauty"),
        (changed(records=[]), r"lacks records of images"),
        (changed(records=[{"image": "a", "part": ""}]), r"lacks records of images"),
        (changed(records=[{"image": "a", "part": "", "probe": {}}]), r"do not fit together"),
    ],
)
def test_bad_results_are_a_sentence(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    write_result(tmp_path)
    (file,) = tmp_path.rglob("result.json")
    damage(file)
    with pytest.raises(UserError, match=says) as caught:
        collect([tmp_path])
    assert "\n" not in str(caught.value)


def test_a_table_of_images_that_was_sorted_anew_changes_no_score(tmp_path: Path) -> None:
    """The data set is the same then, and its results, of before and after, are of the same images in another order."""
    for seed in (0, 1):
        write_result(tmp_path / "one", label="plm", seed=seed, skill=0.6)
        made = write_result(tmp_path / "one", label="random", seed=seed)
        write_result(tmp_path / "two", label="plm", seed=seed, skill=0.6)
        records = [made["records"][place] for place in np.random.default_rng(seed).permutation(24)]
        write_result(tmp_path / "two", label="random", seed=seed, records=records)
    one, two = (collect([tmp_path / name]) for name in ("one", "two"))
    assert [table.scores for table in one] == [table.scores for table in two]
    assert len(collect([tmp_path])) == 1


def test_results_that_do_not_fit_together_and_places_without_any(tmp_path: Path) -> None:
    write_result(tmp_path, label="random", images=20)
    write_result(tmp_path, label="plm")
    with pytest.raises(
        UserError, match=r"plm-0.*json and .*random-0.*json should have the same test images, .*: remove the one"
    ):
        collect([tmp_path])
    (tmp_path / "empty").mkdir()
    for places, says in (
        ([tmp_path / "nowhere"], "nowhere cannot be read"),
        ([], "no results were given"),
        ([tmp_path / "random-0", tmp_path / "empty"], "empty holds no result"),
    ):
        with pytest.raises(UserError, match=says):
            collect(places)
