"""The proof's harness: what is packed holds no test image and no test patient, and pieces add up to the whole."""

from __future__ import annotations

import csv
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.glas import stages
from benchmarks.glas.__main__ import main
from benchmarks.glas.pack import clean_images, pack, unpack
from benchmarks.glas.stages import MORE, SIZES, recipe_of, run
from colocate.data import Index, Labelled
from colocate.errors import UserError
from colocate.prepare import ebhi, glas
from colocate.recipes import RECIPES
from colocate.train import Interrupted

PATIENTS = {"train_1": 1, "train_2": 4, "train_3": 2, "train_4": 2, "testA_1": 1, "testB_1": 4}


def picture(path: Path, seed: int, height: int = 240, width: int = 300) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GlaS: six images of three patients (4 is tested on in the patient-clean split); EBHI-Seg, LC25000."""
    home = tmp_path_factory.mktemp("releases")
    for number, name in enumerate(PATIENTS):
        picture(home / "glas" / f"{name}.bmp", number)
        mask = np.zeros((240, 300), np.uint8)
        mask[40:90, 50:120], mask[140:200, 180:260] = 1, 2
        Image.fromarray(mask).save(home / "glas" / f"{name}_anno.bmp")
    grades = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    grades += [f"{name},{patient}, benign, healthy" for name, patient in PATIENTS.items()]
    (home / "glas" / "Grade.csv").write_bytes("\r".join(grades).encode())
    for tissue in ebhi.FOLDERS:
        for case in range(8):
            name = f"GT{2000000 + case}-1-400-001"
            picture(home / "ebhi" / tissue / "image" / f"{name}.jpg", 100 + case + 10 * len(tissue), 64, 64)
            label = home / "ebhi" / tissue / "label" / f"{name}.png"
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 64), 255, np.uint8)).save(label)
    for number in range(3):
        picture(home / "lc25000" / "colon_n" / f"colonn{number}.jpeg", 500 + number, 64, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glas, "FACTS", replace(glas.FACTS, expected={}))
        pack(home / "glas", home / "ebhi", home / "lc25000", home / "packs", 400_000)
    return home / "packs"


@pytest.fixture(scope="module")
def data(packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    unpack(packs, folder)
    return folder


def test_archives_keep_their_limit(packs: Path) -> None:
    parts = sorted(packs.glob("part-*.tar"))
    assert len(parts) > 2 and all(part.stat().st_size <= 400_000 for part in parts)
    names = []
    for part in parts:
        with tarfile.open(part) as archive:
            names += archive.getnames()
    assert len(names) == len(set(names))


def test_no_test_image_and_no_test_patient_is_packed(packs: Path, data: Path) -> None:
    with (data / "tiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(Index.build(data / "tiles.csv", data / "tiles.arrow")) == len(rows)
    of_glas = [row for row in rows if row["source"].startswith("glas:")]
    assert {row["source"] for row in of_glas} == {"glas:1", "glas:2"}
    assert {Path(row["path"]).stem.split("_")[1] for row in of_glas} == {"train"}
    prepared = Labelled.open(data / "glas")
    test_cases = {prepared.items[n].source for n in prepared.test("patients")}
    assert test_cases == {"glas:4"} and not test_cases & {row["source"] for row in rows}
    assert [prepared.items[n].name for n in clean_images(prepared)] == ["train_1", "train_3", "train_4"]
    tested = {
        draft.source for draft in ebhi.drafts(data.parent / "releases0" / "ebhi")[1] if "test" in str(draft.splits)
    }
    packed = {row["source"] for row in rows if row["source"].startswith("ebhi-seg:")}
    assert tested and packed and not tested & packed
    assert sum(row["source"] == "lc25000" for row in rows) == 3


def test_crops_cover_an_image(data: Path) -> None:
    prepared = Labelled.open(data / "glas")
    number = clean_images(prepared)[0]
    image = prepared.image(number).permute(1, 2, 0).numpy()
    seen = np.zeros(image.shape[:2], bool)
    for path in (data / "tiles").glob(f"glas_{prepared.items[number].name}_*.png"):
        left, top = map(int, path.stem.split("_")[-2:])
        tile = np.asarray(Image.open(path))
        assert (tile == image[top : top + 224, left : left + 224]).all()
        seen[top : top + 224, left : left + 224] = True
    assert seen.all()


def test_a_missing_archive_is_said(packs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part"):
        unpack(tmp_path, tmp_path / "data")
    (tmp_path / "part-01.tar").write_bytes((packs / "part-01.tar").read_bytes())
    with pytest.raises(UserError, match="lacks an archive"):
        unpack(tmp_path, tmp_path / "data")


def test_every_recipe_has_its_size(tmp_path: Path) -> None:
    for name in [name for name in RECIPES if name.split("-")[-1] not in ("small", "demo")]:
        recipe = recipe_of(name, SIZES["gpu"], tmp_path, tmp_path)
        assert (recipe.batch, recipe.views.size, recipe.views.symmetries) == (256, 224, "all")


def test_pieces_go_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def pretrain(recipe: Any, resume: bool) -> None:
        assert resume
        done.append(recipe.out.rsplit("/", 1)[-1])
        Path(recipe.out).mkdir(parents=True, exist_ok=True)
        if len(done) == 2:
            raise Interrupted("stopped at step 3")

    def evaluate(task: Any, protocol: Any, candidates: Any) -> None:
        done.append(f"evaluate {', '.join(c for c in candidates)} x {protocol.seeds}")

    monkeypatch.setattr(stages, "pretrain", pretrain)
    monkeypatch.setattr(stages, "evaluate", evaluate)
    monkeypatch.setattr(stages, "find_candidate", lambda word: word.partition("=")[0])
    names = ["plm", "moco-v2", "random"]
    assert run(data, tmp_path, names, 5, "patients", SIZES["smoke"], 5) == MORE
    assert run(data, tmp_path, names, 5, "patients", SIZES["smoke"], 5) == 0
    assert done == ["plm", "moco-v2", "moco-v2", "evaluate plm, moco-v2, random x 5"]


def test_time_is_over(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "pretrain", lambda *_, **__: signal.pause())
    before = signal.getsignal(signal.SIGTERM)
    assert run(data, tmp_path, ["plm"], 1, "patients", SIZES["smoke"], 0.005) == MORE
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_the_whole_in_pieces(packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(SIZES["smoke"], steps=2, instances=replace(SIZES["smoke"].instances, detections=5))
    monkeypatch.setitem(SIZES, "smoke", size)
    words = ["run", "--packs", str(packs), "--out", str(tmp_path), "--recipes", "plm", "random", "--seeds", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--size", "smoke", "--minutes", "0.03"])
    assert stop.value.code == MORE
    with pytest.raises(SystemExit) as stop:
        main([*words, "--size", "smoke", "--minutes", "5"])
    assert stop.value.code == 0
    main(["report", "--out", str(tmp_path)])
    report = (tmp_path / "report" / "table.md").read_text()
    assert "plm" in report and "random" in report and (tmp_path / "report" / "table.png").exists()
