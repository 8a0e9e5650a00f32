"""The race: what is packed holds nothing it is judged by, and an arm goes from tiles to a row of scores."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.race import judge
from benchmarks.race.__main__ import main
from benchmarks.race.arms import NETWORKS
from benchmarks.race.pack import FOLDS, pack, starts
from benchmarks.race.report import difference
from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.datasets.labelled import Labelled
from tests.data.pictures import picture
from tests.prepare.releases import save

PATIENTS = {"train_1": 1, "train_2": 4, "train_3": 2, "train_4": 16, "testA_1": 1, "testA_2": 4, "testB_1": 11}
FREE = {"train_1": "glas:1", "train_3": "glas:2", "train_4": "glas:16"}  # 4 and 11 are test in the split by patients
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
    pack(**places | {"tile_px": SIDE, "partial": True} | changes, out=out)
    return out


@pytest.fixture(scope="module")
def race(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(releases, tmp_path_factory.mktemp("race") / "race")


def members(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    return found


def test_no_pixel_of_a_test_image_or_a_test_patient_is_packed(race: Path) -> None:
    tiles = members(race / "tiles")
    seen = dict.fromkeys(FREE, 0)
    for name in [name for name in tiles if name.startswith("glas/") and not name.endswith(".json")]:
        image = name.removeprefix("glas/").partition("-")[0]
        with Image.open(io.BytesIO(tiles[name])) as tile:
            assert tile.size == (SIDE, SIDE)
            assert np.unique(np.array(tile)[:, :, 0]).tolist() == [10 * list(PATIENTS).index(image)]
        assert json.loads(tiles[name.partition(".")[0] + ".json"]) == {"source": FREE[image], "mpp": 0.62}
        seen[image] += 1
    assert set(seen.values()) == {3 * 3}


def test_other_tiles_are_the_files_themselves_and_of_training_cases(race: Path, releases: Path) -> None:
    tiles = members(race / "tiles")
    biopsies = sorted((releases / "ebhi").glob("*/image/*"))
    trained = [path for path in biopsies if int(sha256(path.stem[2:9].encode()).hexdigest(), 16) % 10 >= 3]
    other = sorted((releases / "lc25000").rglob("*.jpeg"))
    kept = [data for name, data in tiles.items() if name.endswith((".jpg", ".jpeg"))]
    assert sorted(kept) == sorted(path.read_bytes() for path in trained + other)
    index = Index.build(race / "tiles", race.parent / "tiles.arrow")
    assert 0 < len(trained) < 18 and len(index) == 27 + len(kept)
    assert set(index.sources) == {*FREE.values(), "lc25000", *(f"ebhi-seg:{path.stem[2:9]}" for path in trained)}


def test_a_test_image_among_the_tiles_stops_the_packing(releases: Path, tmp_path: Path) -> None:
    lc25000 = shutil.copytree(releases / "lc25000", tmp_path / "lc25000")
    with Image.open(releases / "glas" / "train_2.bmp") as image:  # of patient 4, whom one of two splits tests on
        image.reduce(2).save(lc25000 / "colon_n" / "innocent.jpeg", quality=80)
    with pytest.raises(UserError, match=r"images/train_2\.png is .*innocent\.jpeg"):
        packed(releases, tmp_path / "race", lc25000=lc25000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lc25000"]


@pytest.mark.parametrize("length", [20, 32, 33, 64, 65, 522, 775])
def test_crops_cover_an_image_and_are_no_more_than_needed(length: int) -> None:
    begins = starts(length, SIDE)
    assert set(range(length)) <= {begin + place for begin in begins for place in range(SIDE)}
    assert begins[0] == 0 and begins[-1] == max(0, length - SIDE) and len(begins) == -(-length // SIDE)


@pytest.mark.parametrize(("name", "scheme"), [("glas", "patients"), ("ebhi", "cases")])
def test_folds_judge_every_training_case_once_and_no_test_image(race: Path, name: str, scheme: str) -> None:
    data = Labelled.open(race / name)
    judged = [number for fold in range(FOLDS) for number in data.test(f"valid{fold}")]
    assert sorted(judged) == sorted(data.train(scheme)) and len(judged) > 0
    for fold in range(FOLDS):
        assert data.shared_sources(f"valid{fold}") == set()
        assert sorted(data.train(f"valid{fold}") + data.test(f"valid{fold}")) == sorted(data.train(scheme))


def test_the_smaller_set_shows_the_same_glands(race: Path) -> None:
    whole, half = Labelled.open(race / "glas"), Labelled.open(race / "glas-half")
    half.verify()
    for number, item in enumerate(half.items):
        assert (item.height, item.width, item.mpp) == (35, 45, 1.24)
        assert half.items[number].splits == whole.items[number].splits
        share = (whole.mask(number) > 0).double().mean() - (half.mask(number) > 0).double().mean()
        assert abs(share) < 0.03 and half.mask(number).unique().tolist() == whole.mask(number).unique().tolist()
        means = [data.image(number).double().mean((1, 2)) for data in (whole, half)]
        torch.testing.assert_close(*means, atol=1.5, rtol=0)


def test_images_of_which_nothing_counts_judge_nothing() -> None:
    dices = (("a", 0.5), ("a", None), ("b", None), ("a", 1.0), ("c", 0.25))
    assert judge._by_case([{"case": case, "dice": dice} for case, dice in dices]) == {"a": (75.0, 2), "c": (25.0, 1)}


@pytest.mark.slow
def test_an_arm_goes_from_tiles_to_a_row(
    race: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judge, "FIT", replace(judge.FIT, steps=1, batch=2))
    monkeypatch.setattr(judge, "BOUND", judge.FIT)
    monkeypatch.setitem(NETWORKS, "random", "test_resnet")
    rows = tmp_path / "rows.jsonl"
    places = ["--race", str(race), "--work", str(tmp_path), "--rows", str(rows), "--budget", "smoke"]
    for seed, quick in (("0", []), ("1", ["--quick"])):
        assert main(["run", "random", *places, "--seed", seed, *quick]) == 0
        assert main(["run", "colocate", *places, "--seed", seed, "--quick", "--changes", "steps=2"]) == 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["arm"] for row in written] == ["random", "colocate steps=2"] * 2
    assert (written[1]["pairs"], written[1]["judged"], written[0]["pairs"]) == (16, "valid", 0)
    glands = written[0]["scores"]["glas linear"]
    items = [item for item in Labelled.open(race / "glas").items if item.splits["patients"] == "train"]
    assert {case: images for case, (_, images) in glands.items()} == Counter(item.source for item in items)
    assert all(0 <= mean <= 100 for mean, _ in glands.values())
    assert "glas U-Net, 10 %" in written[0]["scores"] and "glas U-Net" not in written[1]["scores"]
    capsys.readouterr()
    told = ["report", "--rows", str(rows), "--budget", "smoke", "--against"]
    assert main([*told, "random", "--picture", str(tmp_path / "race.png")]) == 0
    assert (tmp_path / "race.png").stat().st_size > 5000
    assert "| colocate steps=2 | 2 | 16 |" in capsys.readouterr().out
    assert main([*told, "plm"]) == 2
    other = ["--network", "test_efficientnet"]
    for arm in ("random", "colocate"):
        assert main(["run", arm, *places, *other, "--quick"]) == 0
    assert main([*told, "random", *other]) == 0
    assert "| colocate | 1 | 32 |" in capsys.readouterr().out
    assert main(["run", "imagenet", *places, *other]) == 2
    assert main(["run", "imagine", *places]) == 2
    # Weights of a file are judged as the run is that they come from.
    weights = load_file(tmp_path / "smoke-random" / "colocate_steps=2-0" / "backbone.safetensors")
    torch.save(weights, tmp_path / "peer.pt")
    assert main(["run", f"peer={tmp_path / 'peer.pt'}", *places, "--quick", "--pairs", "16"]) == 0
    told_of = json.loads(rows.read_text().splitlines()[-1])
    shared = ("scores", "health", "pairs", "network", "judged")
    assert {name: told_of[name] for name in shared} == {name: written[1][name] for name in shared}
    assert (told_of["arm"], told_of["steps"]) == ("peer", 0)
    assert main(["run", "supervised", *places, "--quick"]) == 2  # it knows the masks that valid judges by
    assert main(["run", "supervised", *places, "--quick", "--test"]) == 0


def test_a_difference_is_paired_and_its_interval_grows_with_what_varies() -> None:
    def row(dices: list[float]) -> dict[str, Any]:
        first, second, b, c = (100 * dice for dice in dices)
        return {"scores": {"s": {"a": ((first + second) / 2, 2), "b": (b, 1), "c": (c, 1)}}}

    base = row([0.1, 0.5, 0.9, 0.3])
    even = [(row([0.15, 0.55, 0.95, 0.35]), base)] * 3
    assert difference(even, "s") == pytest.approx((5.0, 5.0, 5.0)) and difference(even, "t") is None

    def found(pairs: list[Any]) -> tuple[float, float, float]:
        told = difference(pairs, "s")
        assert told is not None
        return told

    mean, low, high = found([(row([0.1, 0.5, 1.0, 0.3]), base)] * 3)  # one case alone gains
    assert mean == pytest.approx(2.5) and low == 0 and high > 5
    mean, low, high = found([(row([0.2, 0.6, 1.0, 0.4]), base), (base, base)])  # one seed alone gains
    assert mean == pytest.approx(5.0) and low == 0 and high == pytest.approx(10.0)
