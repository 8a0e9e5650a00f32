"""The proof harness: what is packed holds nothing it is judged by, and pieces of any length add up to the whole."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.glas import run as its
from benchmarks.glas.__main__ import MORE, main
from benchmarks.glas.archives import Packs, claim, write_archives
from benchmarks.glas.pack import pack, starts
from benchmarks.glas.plan import PROVEN, SIZES, Plan, Size, Stage, recipe_of
from benchmarks.glas.report import MOST_BYTES, _fit
from colocate.data import Index
from colocate.errors import UserError
from colocate.journal import read_journal
from colocate.recipe import MachineConfig
from colocate.run import stop_signals
from colocate.train import Interrupted
from tests.data.pictures import picture
from tests.prepare.releases import save

PATIENTS = {"train_1": 1, "train_2": 4, "train_3": 2, "train_4": 16, "testA_1": 1, "testA_2": 4, "testB_1": 11}
FREE = {"train_1": "glas:1", "train_3": "glas:2", "train_4": "glas:16"}  # 4 and 11 are test in the split by patients
LIMIT_MIB = 0.05
SIDE = 32


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three data sets as released, of few and small images."""
    home = tmp_path_factory.mktemp("releases")
    lines = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for number, (name, patient) in enumerate(PATIENTS.items()):
        pixels = np.array(picture(number, 90, 70))
        pixels[:, :, 0] = 10 * number  # tells what a crop was cut from
        save(pixels, home / "glas" / f"{name}.bmp")
        mask = np.zeros((70, 90), np.uint8)
        mask[5:30, 8:40], mask[35:66, 45:85] = 1, 2
        save(mask, home / "glas" / f"{name}_anno.bmp")
        lines.append(f"{name},{patient}, benign, healthy")
    (home / "glas" / "Grade.csv").write_bytes("\r".join(lines).encode())
    tissues = ("Adenocarcinoma", "High-grade IN", "Low-grade IN", "Normal", "Polyp", "Serrated adenoma")
    for place, tissue in enumerate(tissues):
        for case in (2001837, 2012400 + place, 2100277 + place):
            save(picture(case + place, 40, 40), home / "ebhi" / tissue / "image" / f"GT{case}-1.400.jpg")
            save(np.full((40, 40), 255, np.uint8), home / "ebhi" / tissue / "label" / f"GT{case}-1.400.png")
    for number in range(5):
        save(picture(500 + number, 40, 40), home / "lc25000" / "colon_n" / f"colonn{number}.jpeg")
    return home


def packed(releases: Path, out: Path, **changes: Any) -> Path:
    places: dict[str, Any] = {name: releases / name for name in ("glas", "ebhi", "lc25000")}
    pack(**places | {"most_mib": LIMIT_MIB, "tile_px": SIDE, "partial": True} | changes, out=out)
    return out


@pytest.fixture(scope="module")
def packs(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(releases, tmp_path_factory.mktemp("packs") / "packs")


def members(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and member.name not in found
                found[member.name] = file.read()
    return found


def test_archives_are_no_larger_than_asked(packs: Path) -> None:
    for folder in (packs / "tiles", packs / "labelled"):
        sizes = [path.stat().st_size for path in folder.iterdir()]
        assert len(sizes) > 1 and max(sizes) <= LIMIT_MIB * 2**20
    assert {entry.name for entry in packs.iterdir()} == {"packs.json", "tiles", "labelled"}
    with pytest.raises(UserError, match=r"big\.png alone .*--most-mib"):
        write_archives(packs.parent / "big", "a", [[("big.png", bytes(90_000))]], 90_000)


def test_no_pixel_of_a_test_image_or_a_test_patient_is_packed(packs: Path) -> None:
    tiles = members(packs / "tiles")
    seen = dict.fromkeys(FREE, 0)
    for name in [name for name in tiles if name.startswith("glas/") and not name.endswith(".json")]:
        image = name.removeprefix("glas/").partition("-")[0]
        with Image.open(io.BytesIO(tiles[name])) as tile:
            assert tile.size == (SIDE, SIDE)
            assert np.unique(np.array(tile)[:, :, 0]).tolist() == [10 * list(PATIENTS).index(image)]
        assert json.loads(tiles[name.partition(".")[0] + ".json"]) == {"source": FREE[image], "mpp": 0.62}
        seen[image] += 1
    assert set(seen.values()) == {3 * 3}


def test_other_tiles_are_the_files_themselves_and_of_training_cases(packs: Path, releases: Path) -> None:
    tiles = members(packs / "tiles")
    biopsies = sorted((releases / "ebhi").glob("*/image/*"))
    trained = [path for path in biopsies if int(sha256(path.stem[2:9].encode()).hexdigest(), 16) % 10 >= 3]
    other = sorted((releases / "lc25000").rglob("*.jpeg"))
    kept = [data for name, data in tiles.items() if name.endswith((".jpg", ".jpeg"))]
    assert sorted(kept) == sorted(path.read_bytes() for path in trained + other)
    index = Index.build(packs / "tiles", packs.parent / "tiles.arrow")
    assert 0 < len(trained) < 18 and len(index) == 27 + len(kept)
    assert set(index.sources) == {*FREE.values(), "lc25000", *(f"ebhi-seg:{path.stem[2:9]}" for path in trained)}


def test_a_test_image_among_the_tiles_stops_the_packing(releases: Path, tmp_path: Path) -> None:
    lc25000 = shutil.copytree(releases / "lc25000", tmp_path / "lc25000")
    with Image.open(releases / "glas" / "train_2.bmp") as image:  # of patient 4, whom one of two splits tests on
        image.reduce(2).save(lc25000 / "colon_n" / "innocent.jpeg", quality=80)
    with pytest.raises(UserError, match=r"images/train_2\.png is .*innocent\.jpeg"):
        packed(releases, tmp_path / "packs", lc25000=lc25000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lc25000"]


@pytest.mark.parametrize("length", [20, 32, 33, 64, 65, 522, 775])
def test_crops_cover_an_image_and_are_no_more_than_needed(length: int) -> None:
    begins = starts(length, SIDE)
    assert set(range(length)) <= {begin + place for begin in begins for place in range(SIDE)}
    assert begins[0] == 0 and begins[-1] == max(0, length - SIDE) and len(begins) == -(-length // SIDE)


def test_packs_that_did_not_arrive_whole_are_named(packs: Path, tmp_path: Path) -> None:
    some = shutil.copytree(packs, tmp_path / "some")
    assert Packs.open(some).fingerprint == Packs.open(packs).fingerprint
    with (some / "tiles" / "tiles-1.tar").open("r+b") as file:
        file.seek(3000)
        file.write(b"spoilt")
    with pytest.raises(UserError, match=r"tiles/tiles-1\.tar arrived damaged"):
        Packs.open(some)
    (some / "labelled" / "glas-0.tar").unlink()
    with pytest.raises(UserError, match=r"lacks labelled/glas-0\.tar"):
        Packs.open(some)
    with pytest.raises(UserError, match="give a folder that `pack` wrote"):
        Packs.open(tmp_path)


def test_every_pretraining_comes_first_then_seed_by_seed() -> None:
    plan = Plan(("plm", "random"), seeds=2, splits=("patients", "official"))
    turns = [(split, seed) for seed in (0, 1) for split in ("patients", "official")]
    judged = [f"evaluate {recipe} {split} seed {seed}" for split, seed in turns for recipe in ("plm", "random")]
    assert [stage.name for stage in plan.stages()] == ["pretrain plm", *judged]


@pytest.mark.parametrize("name", PROVEN)
def test_recipes_are_small_ones_with_the_size_asked_for(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(name, Size(), tmp_path, tmp_path, MachineConfig())
    assert recipe.name == f"{name.removesuffix('-v2')}-small" and recipe.views.symmetries == "all"
    assert (recipe.batch, recipe.steps, recipe.precision) == (256, 3906, "bf16-mixed")
    moco: Any = getattr(recipe.method, "moco", recipe.method)
    if "vicregl" not in name:
        assert (moco.queue_length, moco.momentum, moco.norm_group) == (1024, 0.99, 64)


@pytest.fixture
def proof(packs: Path, tmp_path: Path) -> its.Proof:
    plan = Plan(("moco-v2", "plm", "random"), seeds=2, size=SIZES["smoke"].size)
    return its.Proof(plan, Packs.open(packs), tmp_path / "out", "cpu", 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No networks: what would be done is noted, and left as done. What is noted already waits to be stopped."""
    done: list[str] = []

    def pretrain(recipe: Any, resume: bool) -> None:
        with stop_signals() as asked:
            if Path(recipe.out).name in done:
                ends = time.monotonic() + 9
                while not asked and time.monotonic() < ends:
                    time.sleep(0.01)
        done.append(Path(recipe.out).name)
        if asked:
            raise Interrupted("stopped at step 1 of 6; go on with: ...")
        Path(recipe.out).mkdir(parents=True)
        (Path(recipe.out) / "backbone.json").write_text(json.dumps({"steps": recipe.steps}))

    def evaluate(task: Any, protocol: Any, candidates: Any) -> None:
        (label,) = candidates
        done.append(f"{label} {protocol.split} {protocol.first_seed}")
        file = Path(protocol.out) / done[-1] / "result.json"
        file.parent.mkdir(parents=True)
        facts = {"backbone": {"label": label}, "dataset": {"split": protocol.split}, "seed": protocol.first_seed}
        file.write_text(json.dumps(facts))

    monkeypatch.setattr(its.train, "pretrain", pretrain)
    monkeypatch.setattr(its.protocol, "evaluate", evaluate)
    monkeypatch.setattr(its, "find_candidate", lambda word, *_: word.partition("=")[0])
    return done


ALL = ["moco-v2", "plm", *(f"{name} patients {seed}" for seed in (0, 1) for name in ("moco-v2", "plm", "random"))]


def test_a_piece_gets_a_stage_further_however_short_it_is(proof: its.Proof, fake: list[str]) -> None:
    for count in range(1, len(ALL) + 1):
        assert len(proof.work(0)) == len(ALL) - count and fake == ALL[:count]
    assert proof.work(60) == [] and fake == ALL


def test_the_deadline_is_heard_by_a_loop_that_begins_after_it(
    proof: its.Proof, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    fake.append("moco-v2")  # this one waits to be stopped
    settle = its.Proof.settle
    monkeypatch.setattr(its.Proof, "settle", lambda self: (settle(self), os.kill(os.getpid(), signal.SIGTERM)))
    began = time.monotonic()
    assert len(proof.work(60)) == len(ALL)
    assert time.monotonic() - began < 8 and fake == ["moco-v2", "moco-v2"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_another_process_has_in_hand_is_left_to_it(
    proof: its.Proof, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(its, "LOOK_AGAIN_S", 0.05)
    with claim(proof.out / "claims" / "pretrain-moco-v2") as mine:
        assert mine
        left = proof.work(1)
    assert fake == [name for name in ALL if "moco" not in name]
    assert left == [Stage("pretrain", "moco-v2"), *(Stage("evaluate", "moco-v2", "patients", seed) for seed in (0, 1))]
    assert proof.work(60) == []


def command(packs: Path, out: Path, *words: str) -> list[str]:
    return ["run", "--packs", str(packs), "--out", str(out), "--accelerator", "cpu", "--workers", "0", *words]


def test_exit_status_and_what_a_folder_remembers(
    packs: Path, tmp_path: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(packs, tmp_path, "--minutes", "0")
    assert main([*words, "--size", "smoke", "--recipes", "moco-v2", "random", "--seeds", "2"]) == MORE == 75
    said = capsys.readouterr().out
    assert "1 of 5 stages are done" in said and "evaluate random patients seed 1" in said
    assert main(words) == MORE and fake == ["moco-v2", "moco-v2 patients 0"]
    assert main([*words, "--minutes", "1"]) == 0 and len(fake) == 5
    assert main([*words, "--recipes", "moco-v2", "plm", "random"]) == MORE and fake[5:] == ["plm"]
    for change in (["--pairs", "9999"], ["--instances.fit.steps", "7"], ["--size", "gpu"]):
        assert main([*words, *change]) == 2
        assert "was begun with other" in capsys.readouterr().err
    for change in (["--recipes", "simclr"], ["--splits", "moon"], ["--seeds", "0"], ["--size", "huge"]):
        assert main([*words, *change]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_pictures_are_made_to_fit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    save(noise, tmp_path / "a.png")
    _fit(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_pieces_in_many_places_give_what_one_piece_gives(
    packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SIZES["smoke"].size
    few = replace(size.instances, fit=replace(size.instances.fit, steps=3), short_side=(48, 64), test_short_side=64)
    tiny = Plan(("plm", "random"), 1, ("official",), replace(size, backbone="test_resnet", pairs=640, instances=few))
    monkeypatch.setitem(SIZES, "smoke", tiny)
    assert main(command(packs, tmp_path / "whole", "--size", "smoke", "--minutes", "5")) == 0
    place = tmp_path / "place"
    shutil.copytree(packs, place / "packs")
    assert main(command(place / "packs", place / "out", "--size", "smoke", "--minutes", "0")) == MORE
    assert 0 < len(read_journal(place / "out" / "runs" / "plm")) < 20  # it was stopped on its way
    for move in range(30):
        place = place.rename(tmp_path / f"place-{move}")
        shutil.rmtree(place / "packs" / "glas")
        if main(command(place / "packs", place / "out", "--minutes", "0")) == 0:
            break
    assert results(place / "out") == results(tmp_path / "whole") != []
    assert main(["report", "--out", str(place / "out")]) == 0
    report = place / "out" / "report"
    words = (report / "README.md").read_text()
    assert "27 of glas (3 cases)" in words and "2 of 2 evaluations are done" in words and "| plm " in words
    assert {f"overlays-official-{name}.png" for name in ("plm", "random")} < {path.name for path in report.iterdir()}
    assert str(tmp_path) not in "".join(path.read_text() for path in report.glob("*.[cjm][sd]*"))


def results(out: Path) -> list[Any]:
    found = [json.loads(file.read_text()) for file in sorted(out.glob("results/*/result.json"))]
    return [(result["backbone"]["fingerprint"], result["leakage"], result["records"]) for result in found]
