"""The whole journey in one command: each stage once, nothing of what is tested on in the pretraining."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.cli import start as journey
from colocate.cli.main import main
from colocate.data.index import Index
from colocate.datasets.labelled import Labelled
from colocate.datasets.own import read_items
from colocate.datasets.prepare import prepare
from colocate.evaluation.candidates import find_candidates
from colocate.slides.listing import find_slides
from colocate.training.checkpoint import packed, write_backbone
from colocate.training.loop import build_backbone
from colocate.training.recipe import to_json
from tests.prepare.test_qupath import annotate, box
from tests.tiny import tiny_recipe, write_tiles

RECIPE = """
from pathlib import Path
from tests.tiny import tiny_recipe

def recipe():
    return tiny_recipe(Path(), Path(), steps=2)
"""

ITEMS = "path,source\ns2.tif,p\ns0,p\ns1,q\n"


def stop(*_: object, **__: object) -> None:
    raise UserError("far enough")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two annotated slides and one whose annotation lies aside (`more`), of four tiles each; a tiny recipe."""
    home = tmp_path_factory.mktemp("made")
    slides, labels = home / "slides", home / "labels"
    for seed in range(2):
        annotate(labels, seed, box(270, 270, 370, 370), box(400, 300, 500, 400), mpp=1.0, side=1024)
        slides.mkdir(exist_ok=True)
        (labels / f"s{seed}.tif").rename(slides / f"s{seed}.tif")
    annotate(home / "more", 2, box(270, 270, 370, 370), mpp=1.0, side=1024)
    (home / "more" / "s2.tif").rename(slides / "s2.tif")
    (home / "mine.py").write_text(RECIPE)
    return home


@pytest.fixture
def words(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command on slides and labels that a test may change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    slides, labels = tmp_path / "slides", tmp_path / "labels"
    monkeypatch.setattr(journey, "U_NET", {"crop": 64, "fit": {"steps": 2, "batch": 2}, "workers": 0})
    asked = ["--labels", str(labels), "--out", str(tmp_path / "out"), "--recipe", f"{tmp_path}/mine.py:recipe"]
    return ["start", str(slides), *asked]


def test_a_dry_run_tells_and_does_nothing(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*words, "--dry-run"])
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == ["1. labels", "2. tiles", "3. run", "4. results", "5. objects"]
    assert "--init FILE" in told[2]
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_is_refused_before_any_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*options: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            main([*words, *options])
        return capsys.readouterr().err

    monkeypatch.setattr(journey.api, "tile", stop)
    for place in ("empty", "bare"):
        (tmp_path / place).mkdir()
    (tmp_path / "bare" / "s0.geojson").write_text("[]")
    assert "is no folder" in said("--labels", f"{tmp_path}/nowhere", "--dry-run")
    assert "holds no .geojson" in said("--labels", f"{tmp_path}/empty", "--dry-run")
    assert "s0.geojson has no annotation of class Region*" in said("--labels", f"{tmp_path}/bare", "--dry-run")
    assert "--hours 0 leaves no time to pretrain: give more than 0" in said("--hours", "0", "--dry-run")
    assert "nowhere.pth: no such file of weights" in said("--init", "nowhere.pth")
    assert not (tmp_path / "out").exists()
    seen = tmp_path / "seen"
    for name in ("s0", "s1"):
        write_tiles(seen / "tiles" / name, count=1)
    Index.build(seen / "tiles", seen / "tiles.arrow")
    backbone = build_backbone(tiny_recipe(seen, seen))
    write_backbone(seen, backbone, backbone.facts)
    told = said("--init", str(seen))
    labels = Labelled.open(tmp_path / "out" / "labels")
    (tested,) = {labels.slide(number) for number in labels.test(labels.schemes[0])}
    assert f"1 test case among the tiles' cases: {tested} (" in told
    assert f"so the weights {seen} cannot be judged: give others with --init, or other labels" in told
    asked = 'steps=2, encoder=EncoderConfig("pit_ti_224"), views=ViewConfig(size=224))'
    (tmp_path / "mine.py").write_text(f"from colocate.training.recipe import *\n{RECIPE}".replace("steps=2)", asked))
    assert "pit_ti_224 has stages of strides 8, 16, 32: decoders need" in said()


def test_labels_are_read_as_slides_are(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the table's resolutions, which count before the files', and by --slide-mpp."""
    monkeypatch.setattr(journey.api, "tile", stop)
    for seed in range(2):
        (tmp_path / f"s{seed}.tif").symlink_to(tmp_path / "slides" / f"s{seed}.tif")
    (tmp_path / "slides.csv").write_text("path,mpp,source\ns0.tif,0.5,p\ns1.tif,0.5,q\n")
    with pytest.raises(SystemExit):
        main(["start", str(tmp_path / "slides.csv"), *words[2:], "--mpp", "0.5"])
    assert "far enough" in capsys.readouterr().err
    data = Labelled.open(tmp_path / "out" / "labels")
    assert {(item.width, item.mpp) for item in data.items} == {(100, 0.5)} and {one.source for one in data.items} == {
        *"pq"
    }
    with Image.open(tmp_path / "slides" / "s0.tif") as picture:
        picture.convert("RGB").save(tmp_path / "slides" / "s0.png")
    (tmp_path / "slides" / "s0.tif").unlink()
    with pytest.raises(SystemExit):
        main([*words[:-3], str(tmp_path / "other"), *words[-2:], "--slide-mpp", "1"])
    assert "far enough" in capsys.readouterr().err


@pytest.mark.slow
def test_from_slides_to_objects_and_nothing_twice(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in [*(tmp_path / "slides").iterdir(), *(tmp_path / "labels").glob("*.geojson")]:
        file.rename(file.with_name(f"a, {file.name}"))  # a comma also parts what is held out
    main(words)
    out = tmp_path / "out"
    data = Labelled.open(out / "labels")
    tested = journey.tested_slides(data, find_slides([tmp_path / "slides"]), {})
    assert len(tested) == 1
    trained = set(Index.open(out / "run" / "tiles.arrow").sources)
    assert len(trained) == 2 and not trained & set(tested)
    assert {path.stem for path in (out / "objects").glob("*.geojson")} == {"a, s0", "a, s1", "a, s2"}
    said = capsys.readouterr().out
    assert "pretrained" in said and "random" in said and "onto it in QuPath" in said
    made = ("*.safetensors", "result.json", "*.geojson", "*.tar", "items.csv", "*.ckpt")
    before = {path: path.stat().st_mtime_ns for name in made for path in out.rglob(name)}
    assert len(before) > 10
    main(words)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_is_compared_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    """In the run's own normalisation, which a plain file does not say, and another run does."""
    recipe = tiny_recipe(tmp_path, tmp_path)
    recipe = replace(recipe, views=replace(recipe.views, mean=(0.5, 0.5, 0.5), std=(0.4, 0.4, 0.4)))
    backbone, run, file = build_backbone(recipe), tmp_path / "run", tmp_path / "a=b.safetensors"
    write_backbone(run, backbone, {"mean": recipe.views.mean, "std": recipe.views.std, "steps": 3})
    write_atomically(file, packed(backbone.net.state_dict()))
    found = {}
    for init in ("random", str(file), str(run), "published"):
        asked = journey.compared(replace(recipe, encoder=replace(recipe.encoder, init=init)), run)
        found[init] = asked.pop("backbones")
        if init != "published":
            pretrained, before = find_candidates(found[init], **asked)
            assert (pretrained.label, pretrained.steps, before.architecture) == ("pretrained", 3, "test_resnet")
            if init != "random":
                assert before.fingerprint == pretrained.fingerprint and before.label == "before"
                assert (before.mean, before.std) == (pretrained.mean, pretrained.std) == ((0.5,) * 3, (0.4,) * 3)
    assert (found["random"][1], found["published"][1]) == ("random", "imagenet")


@pytest.mark.parametrize(
    ("hours", "changes", "steps"),
    [(1, {"epochs": 2}, 1200), (0.1, {"epochs": 2}, 360), (1, {"steps": 7}, 7), (1, {"epochs": 900}, 1800), (0, {}, 1)],
)
def test_steps_fit_into_the_time_and_are_enough_where_tiles_are_few(
    hours: float, changes: dict[str, int], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colocate.cli.demo.pairs_per_s", lambda recipe: 8.0)  # one batch of 8
    pq.write_table(pa.table({"slide": ["a"] * 16 + ["b"] * 8}), tmp_path / "manifest.parquet")
    recipe = replace(tiny_recipe(tmp_path, tmp_path), **{"steps": None, **changes})
    recipe = replace(recipe, optim=replace(recipe.optim, warmup_epochs=10))
    fitted = journey.fit_into(hours, recipe, tmp_path / "run", ["b"])
    assert (fitted.steps, fitted.batch) == (steps, 8)
    assert fitted.optim.warmup_epochs == pytest.approx(min(10, 0.1 * steps / 2))  # an epoch is two batches
    write_atomically(tmp_path / "run" / "recipe.json", to_json(fitted))
    other = replace(recipe, batch=4, optim=replace(recipe.optim, lr=0.5))  # which a run that has begun refuses
    assert journey.fit_into(hours + 1, other, tmp_path / "run", []) == replace(
        other, steps=steps, batch=8, optim=replace(fitted.optim, lr=0.5)
    )


def test_of_one_annotated_slide_nothing_is_held_out(tmp_path: Path) -> None:
    annotate(tmp_path / "labels", 0, box(130, 140, 230, 240), box(240, 140, 340, 240))
    main(["prepare", "qupath", str(tmp_path / "labels"), str(tmp_path / "data")])
    assert journey.tested_slides(Labelled.open(tmp_path / "data"), find_slides([tmp_path / "labels"]), {}) == []


def prepared(home: Path, images: Path) -> Labelled:
    """The labels in colocate's form, read from these slides."""
    words = ["prepare", "qupath", str(home / "labels"), str(home / "data"), "--images", str(images), "--mpp", "1"]
    main(words)
    return Labelled.open(home / "data")


def test_other_slides_of_a_case_that_is_tested_on_are_held_out_and_links_too(words: list[str], tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    (slides / "slides.csv").write_text("path,source\ns0.tif,p\ns1.tif,q\ns2.tif,p\n")
    data = prepared(tmp_path, slides / "slides.csv")
    assert {data.items[number].source for number in data.test("slides")} == {"p"}
    assert journey.tested_slides(data, find_slides([slides / "slides.csv"]), {}) == ["s0", "s2"]
    (slides / "x.tif").symlink_to(slides / "s0.tif")
    (slides / "y.tif").hardlink_to(slides / "s0.tif")
    assert journey.tested_slides(data, find_slides([slides]), {}) == ["s0", "x", "y"]


def test_patients_that_items_csv_alone_names_are_held_out(words: list[str], tmp_path: Path) -> None:
    """Be it of a slide without annotations, or of the annotated one of a patient whom a table of slides names too."""
    (tmp_path / "labels" / "items.csv").write_text(ITEMS)
    data = prepared(tmp_path, tmp_path / "slides")
    assert {data.items[number].source for number in data.test("slides")} == {"p"} and len(data) == 4
    said = read_items(tmp_path / "labels" / "items.csv", (), None, ("s0", "s1", "s2"))
    assert journey.tested_slides(data, find_slides([tmp_path / "slides"]), said) == ["s0", "s2"]
    table = tmp_path / "slides" / "slides.csv"
    table.write_text("path,source\ns0.tif,\ns1.tif,q\ns2.tif,p\n")
    assert journey.tested_slides(data, find_slides([table]), {}) == ["s0", "s2"]


def test_cases_on_both_sides_let_no_other_be_seen(words: list[str], tmp_path: Path) -> None:
    table = tmp_path / "slides" / "slides.csv"
    table.write_text("path,source\ns0.tif,p\ns1.tif,p\ns2.tif,q\n")
    (tmp_path / "more" / "s2.geojson").rename(tmp_path / "labels" / "s2.geojson")
    (tmp_path / "labels" / "items.csv").write_text("path,split\ns0,train\ns1,test\ns2,test\n")
    assert journey.tested_slides(prepared(tmp_path, table), find_slides([table]), {}) == ["s2"]


MORE_THAN_TILED = "path,source\ns0.tif,p\ns1.tif,q\ns2.tif,p\ngone.tif,p\nlost.tif,q\n"


@pytest.mark.parametrize(
    ("file", "text", "slides", "held_out"),
    [
        pytest.param("labels/items.csv", ITEMS, "slides", r"slide=s0,s2", id="items.csv says whose"),
        # --hold-out refuses a value that no tile has.
        pytest.param("slides/t.csv", MORE_THAN_TILED, "slides/t.csv", r"slide=s0,s2", id="tested, without tiles"),
        pytest.param(
            "mine.py",
            RECIPE.replace("steps=2", 'steps=2, hold_out=("slide=s2",)'),
            "slides",
            r"slide=s2 slide=s[01]",
            id="the recipe holds out",
        ),
    ],
)
def test_what_pretraining_holds_out(
    file: str, text: str, slides: str, held_out: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).write_text(text)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(journey.api, "tile", lambda *_, **__: None)
    monkeypatch.setattr("colocate.cli.demo.pairs_per_s", lambda recipe: 8.0)
    monkeypatch.setattr(journey.api, "pretrain", lambda recipe, **_: asked.append(recipe.hold_out) or stop())
    (tmp_path / "out" / "tiles").mkdir(parents=True)
    pq.write_table(pa.table({"slide": ["s0", "s1", "s2"]}), tmp_path / "out" / "tiles" / "manifest.parquet")
    with pytest.raises(SystemExit):
        main(["start", str(tmp_path / slides), *words[2:]])
    (found,) = asked
    assert re.fullmatch(held_out, " ".join(found))


def test_labels_that_have_changed_are_not_left_out(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command would take what it made of the labels before, even if it was killed just after they got their
    name, and before all that belongs to them was written."""

    def killed(*asked: Any, **settings: Any) -> None:
        prepare(*asked, **settings)
        raise UserError("killed")

    def said() -> str:
        with pytest.raises(SystemExit):
            main(words)
        return capsys.readouterr().err

    monkeypatch.setattr(journey.api, "tile", stop)
    monkeypatch.setattr("colocate.datasets.prepare.prepare", killed)
    assert "killed" in said() and "far enough" in said()
    assert (tmp_path / "out" / "labels" / "made-of.txt").is_file()
    assert "far enough" in said()
    edited = tmp_path / "labels" / "s1.geojson"
    before = edited.read_text()
    edited.write_text(f"{before}\n")
    assert "are not what" in (told := said()) and "choose another --out" in told
    edited.write_text(before)
    (tmp_path / "more" / "s2.geojson").rename(tmp_path / "labels" / "s2.geojson")
    assert "are not what" in said()
