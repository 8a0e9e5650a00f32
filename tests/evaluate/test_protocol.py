"""The protocol on a data set that is easy to learn: results once, resumed, cached by what they depend on, honest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.api import load_model
from colocate.base.errors import UserError
from colocate.base.files import claimed
from colocate.cli.main import main
from colocate.datasets.labelled import Labelled
from colocate.evaluation import protocol as its
from colocate.evaluation.candidates import Candidate, find_candidate
from colocate.evaluation.protocol import evaluate, some_of
from colocate.evaluation.settings import (
    METRICS,
    ContoursConfig,
    InstancesConfig,
    ProbeConfig,
    SemanticsConfig,
    Task,
    name_of,
)
from colocate.evaluation.tasks import Outcome, Overlays, Trial, check_stages
from colocate.models.backbones import Backbone
from tests.evaluate.conftest import ENGINE, SLOW, TASKS, protocol
from tests.evaluate.made import records
from tests.evaluate.tissue import write_partly


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is learned or judged: records are drawn."""

    def run(task: Task, trial: Trial, overlays: Overlays) -> Outcome:
        overlays.wanted = []
        made = records(name_of(task), 0, 0.5, len(trial.test))
        return Outcome([{family: record[family] for family in METRICS[name_of(task)]} for record in made])

    monkeypatch.setattr(its, "run", run)


@pytest.mark.parametrize("name", [*SLOW, "linear", "nearest"])
def test_each_task_leaves_a_whole_result(name: str, kept: Callable[[str], Path]) -> None:
    folder = kept(name)
    result = read(folder / "result.json")
    assert [record["image"] for record in result["records"]] == [f"image{n}" for n in range(10, 16)]
    assert result["dataset"] | {"split": "patients", "train": 10, "test": 6, "shared_sources": []} == result["dataset"]
    assert its.scores_of(result["metrics"], result["records"]) == result["scores"]
    assert set(result["parts"]) == {"testA", "testB"}
    assert result["leakage"]["found"] == [] and not result["leakage"]["forced"]
    assert not (folder / "checkpoints").exists()
    assert all((folder / name).stat().st_size > 1000 for name in ("overlays.png", "worst-best.png"))
    if name != "instances":  # dark discs on light ground: colour is enough
        score = {"contours": "object Dice", "semantics": "Dice gland"}.get(name, "pooled Dice")
        assert result["scores"][score] > 60, result["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semantics", "linear"])
def test_an_ignored_number_beside_the_classes(name: str, random: Candidate, tmp_path: Path) -> None:
    data = write_partly(tmp_path / "data", 255, blank=(10, 11))
    (file,) = evaluate(TASKS[name], protocol(data, tmp_path, keep_models=True), [random])
    result = read(file)
    score = "Dice gland" if name == "semantics" else "pooled Dice"
    assert result["scores"][score] > 60, result["scores"]
    assert ("uncounted" in result["identity"]) == (name != "semantics")  # else results of earlier would be taken
    if name == "semantics":
        assert set(result["records"][0]["semantic"]) == {"other", "gland"}
        model = load_model(file.parent, "cpu")
        assert model.predict(data.image(12).permute(1, 2, 0).numpy()).classes.max() == 1  # pyright: ignore
    else:
        assert [record["probe"]["dice"] is None for record in result["records"]] == [True] * 2 + [False] * 4


def test_training_images_of_which_nothing_counts_are_refused(random: Candidate, tmp_path: Path) -> None:
    data = write_partly(tmp_path / "data", 0, blank=range(10))
    says = "discs: .*all pixels of its 10 training images .*nothing can be learned"
    with pytest.raises(UserError, match=says):
        evaluate(TASKS["semantics"], protocol(data, tmp_path), [random])


def test_an_image_of_which_nothing_counts_is_neither_the_worst_nor_the_best(data: Labelled) -> None:
    overlays = Overlays(replace(data, ignored=3), [0, 1])
    truth = torch.ones(64, 80, dtype=torch.int64)
    overlays.classes(0, truth * 3, truth)
    overlays.classes(1, truth, truth)
    assert overlays.worst == overlays.best == [(1.0, 1)] and overlays.pictures[0][2] == "no pixel counts"


def test_the_worst_and_the_best_images_are_kept(data: Labelled, tmp_path: Path) -> None:
    test = list(range(16))
    rights = np.random.default_rng(0).permutation(len(test))  # rows of each image that are right
    overlays = Overlays(data, test[:3])
    for number, right in zip(test, rights.tolist(), strict=True):
        truth = torch.ones(64, 80, dtype=torch.int64)
        found = truth.clone()
        found[right:] = 0
        overlays.classes(number, truth, found)
    order = [test[place] for place in rights.argsort()]
    assert [number for _, number in overlays.worst] == order[:4]
    assert [number for _, number in overlays.best] == order[:-5:-1]
    assert set(overlays.pictures) == {*test[:3], *order[:4], *order[-4:]}
    overlays.write(tmp_path)
    with Image.open(tmp_path / "worst-best.png") as sheet, Image.open(tmp_path / "overlays.png") as spread:
        assert sheet.height > 1.5 * spread.height  # two rows, one row


def test_a_network_that_cannot_be_judged_is_refused_before_others_are(
    data: Labelled, random: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(its, "run", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match="test_vit has stages of strides 16, none of 8"):
        evaluate(TASKS["nearest"], protocol(data, tmp_path), [random, find_candidate("vit=random", "test_vit")])
    early = replace(random, label="early", cell_stride=4)
    frozen = (replace(TASKS[name], encoder="frozen") for name in ("semantics", "contours"))
    for task, remedy in (TASKS["nearest"], "--stride 4"), *((task, "--encoder tuned") for task in frozen):
        with pytest.raises(
            UserError, match=f"cells of 4 px, and pretraining has not trained its later stages: give {remedy}"
        ):
            evaluate(task, protocol(data, tmp_path), [random, early])
    with pytest.raises(UserError, match="give --stride 4"):  # its cells were not trained to be seen through them
        check_stages(TASKS["nearest"], replace(early, continued=True))
    check_stages(SemanticsConfig(encoder="frozen"), replace(early, continued=True))
    check_stages(TASKS["semantics"], early)  # where they learn
    check_stages(SemanticsConfig(encoder="frozen"), replace(find_candidate("random", "test_vit"), cell_stride=16))


def test_statistics_that_were_never_counted_are_not_frozen(random: Candidate) -> None:
    """As of a run from random weights whose later stages did not run."""
    net, whole = Backbone("test_resnet", cell_stride=16), Backbone("test_resnet")
    for one in (net, whole):
        one.train()(torch.randn(4, 3, 64, 64))
    early = replace(random, label="early", weights=net.net.state_dict())
    for task, remedy in (
        (InstancesConfig(norm="frozen"), "norm"),
        (ContoursConfig(encoder="frozen"), "encoder"),
        (SemanticsConfig(encoder="frozen"), "encoder"),
    ):
        with pytest.raises(UserError, match=f"early has batch norms that never saw .* give --{remedy} tuned"):
            check_stages(task, early)
    check_stages(InstancesConfig(norm="frozen"), replace(early, weights=whole.net.state_dict()))
    check_stages(InstancesConfig(norm="frozen"), replace(early, weights={}))  # which take the training images'
    check_stages(InstancesConfig(), early)


def test_a_second_call_computes_nothing(
    data: Labelled, random: Candidate, drawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS["nearest"]
    first = evaluate(task, protocol(data, tmp_path), [random])
    before = first[0].stat().st_mtime_ns
    monkeypatch.setattr(its, "run", lambda *_: pytest.fail("computed again"))
    assert evaluate(task, protocol(data, tmp_path), [random]) == first
    assert first[0].stat().st_mtime_ns == before
    left = first[0].with_name("checkpoints")  # as is the lock, by one that was killed when its result was whole
    left.mkdir()
    with claimed(first[0].with_name(".lock"), wait=False):
        evaluate(task, protocol(data, tmp_path), [random])
        assert left.exists()
    first[0].with_name(".lock").touch()
    assert evaluate(task, protocol(data, tmp_path), [random]) == first
    assert not left.exists() and not first[0].with_name(".lock").exists()
    whole = first[0].read_bytes()
    first[0].write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"result\.json is no result of `colocate evaluate`, or is cut short"):
        evaluate(task, protocol(data, tmp_path), [random])
    first[0].write_bytes(whole)
    changed = (
        (ProbeConfig("nearest", stride=8, neighbours=6), protocol(data, tmp_path)),
        (task, protocol(data, tmp_path, fraction=0.5)),
        (task, protocol(data, tmp_path, first_seed=1)),
    )
    for other, its_protocol in changed:
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            evaluate(other, its_protocol, [random])
    engines = (replace(ENGINE, precision=precision) for precision in ("32", "bf16-mixed"))
    protocols = (protocol(data, tmp_path, engine=engine) for engine in engines)
    trials = {its._trial(TASKS["semantics"], one, random, data, "patients", [0], 0).identity for one in protocols}
    assert len(trials) == 2


def test_what_another_process_is_at_work_on_is_waited_for(
    data: Labelled,
    random: Candidate,
    drawn: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file,) = evaluate(TASKS["nearest"], protocol(data, tmp_path), [random])
    monkeypatch.setattr(its, "run", lambda *_: pytest.fail("computed again"))
    whole, said = file.read_bytes(), ""
    file.unlink()
    with ThreadPoolExecutor(1) as pool:
        with claimed(file.with_name(".lock"), wait=False):
            second = pool.submit(evaluate, TASKS["nearest"], protocol(data, tmp_path), [random])
            while "is being written by another process: waiting for it" not in said and not second.done():
                time.sleep(0.01)
                said += capsys.readouterr().err
            file.write_bytes(whole)
        assert second.result() == [file] and file.read_bytes() == whole


def test_objects_that_were_deleted_are_found_again(
    data: Labelled, random: Candidate, drawn: None, tmp_path: Path
) -> None:
    """Only where there would be any."""
    for name, kept in (("contours", True), ("semantics", False)):
        for _ in range(2):
            (file,) = evaluate(TASKS[name], protocol(data, tmp_path), [random])
            objects = file.with_name("predictions.json")
            assert objects.exists() == kept
            objects.unlink(missing_ok=True)


def test_it_says_how_far_it_is(
    data: Labelled,
    random: Candidate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a screen by a bar; in a log, which this is, by lines that are half a minute apart."""
    monkeypatch.setattr("colocate.base.text.QUIET_S", 0.0)
    (file,) = evaluate(TASKS["nearest"], protocol(data, tmp_path), [random])
    counts = read(file)["dataset"]
    count = counts["train"] + counts["test"]
    seen = [line for line in capsys.readouterr().err.splitlines() if line.endswith(f" of {count} images")]
    assert seen == [f"{done} of {count} images" for done in range(1, count + 1)]


def test_labels_that_were_changed_are_not_those_of_a_result(
    copied: Labelled, random: Candidate, drawn: None, tmp_path: Path
) -> None:
    evaluate(TASKS["nearest"], protocol(copied, tmp_path / "out"), [random])
    (copied.folder / copied.items[15].mask).write_bytes((copied.folder / copied.items[14].mask).read_bytes())
    with pytest.raises(UserError, match=r"masks/image15\.png was changed since it was prepared: prepare the set again"):
        evaluate(TASKS["nearest"], protocol(copied, tmp_path / "out"), [random])


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on(
    data: Labelled,
    random: Candidate,
    kept: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, whole = TASKS["semantics"], kept("semantics")
    calls = 0
    forward = torch.nn.functional.cross_entropy

    def dies(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise RuntimeError("the machine is gone")
        return forward(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", dies)
    with pytest.raises(RuntimeError, match="gone"):
        evaluate(task, protocol(data, tmp_path / "parts"), [random])
    (parts,) = evaluate(task, protocol(data, tmp_path / "parts"), [random])
    assert calls == 12 + 10  # from the checkpoint of step 10
    assert read(parts)["records"] == read(whole / "result.json")["records"]


def test_fractions_are_nested_and_of_few_cases(data: Labelled) -> None:
    train = data.train("patients")
    for seed in range(6):
        chosen = [set(some_of(data, train, share, seed)) for share in (0.05, 0.2, 0.5, 0.75, 1.0)]
        assert [len(some) for some in chosen] == [1, 2, 5, 8, 10]
        for less, more in pairwise(chosen):
            assert less <= more
        assert [len({data.items[n].source for n in some}) for some in chosen] == [1, 1, 3, 4, 5]
    assert len({tuple(some_of(data, train, 0.2, seed)) for seed in range(20)}) > 2


def test_a_seen_test_image_is_refused_unless_forced(
    copied: Labelled, random: Candidate, drawn: None, tmp_path: Path
) -> None:
    rows = (copied.folder / "items.csv").read_text().splitlines()
    train_image, test_image = rows[1].split(","), rows[-1].split(",")
    test_image[:2], test_image[6:8] = train_image[:2], train_image[6:8]
    (copied.folder / "items.csv").write_text("\n".join([*rows[:-1], ",".join(test_image)]) + "\n")
    with pytest.raises(UserError, match="--allow-leakage"):
        evaluate(TASKS["nearest"], protocol(copied, tmp_path / "out"), [random])
    (file,) = evaluate(TASKS["nearest"], protocol(copied, tmp_path / "out", allow_leakage=True), [random])
    assert read(file)["leakage"]["forced"] and read(file)["leakage"]["found"]


def test_the_command_line(data: Labelled, drawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(data.folder), "--out", str(tmp_path), "--seeds", "2", "--accelerator", "cpu"]
    words += ["--classifier", "nearest", "--architecture", "test_resnet", "--backbone", "random", "a=random"]
    main(["evaluate", "probe", *words])
    assert "4 results" in capsys.readouterr().out
    files = list(tmp_path.glob("probe-discs-patients-*/result.json"))
    assert [read(file)["settings"]["classifier"] for file in files] == ["nearest"] * 4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "instances, contours, semantics, probe"),
        (["probe"], "--data"),
        (["probe", "--data", "DATA"], "--backbone"),
        (["probe", "--data", "DATA", "--backbone", "random", "random"], "LABEL=RUN"),
        (["probe", "--data", "DATA", "--backbone", "random", "--split", "moon"], "no split 'moon'"),
        (["probe", "--data", "nowhere", "--backbone", "random"], "nowhere"),
        (["semantics", "--data", "DATA", "--backbone", "random", "--fraction", "2"], "fraction"),
        (["probe", "--data", "DATA", "--backbone", "random", "--precision", "bf16-mixed"], "float32: leave --prec"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], named: str, data: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(str(data.folder) if word == "DATA" else word for word in words)])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err
