"""Features of slides against a plain loop over the pixels the slide was made of."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.evaluation.candidates import Candidate, find_candidate
from colocate.models.backbones import Backbone, load_backbone
from colocate.prediction.features import features
from colocate.prediction.settings import DeviceConfig, FeatureConfig
from colocate.slides.listing import Listed
from colocate.slides.runner import Tally
from colocate.training.checkpoint import write_backbone
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.predict.seen import torn

MEAN, STD = [0.7, 0.5, 0.6], [0.2, 0.25, 0.3]
SIDE, SIZE = 512, 64
PIXELS = tissue_slide(SIDE)[0]
CPU = DeviceConfig(batch=5, accelerator="cpu", workers=0)
CONFIG = FeatureConfig(size=SIZE, device=CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 512 px at 1 um/px, the outline of its tissue (the middle half), and a backbone for 1 um/px."""
    folder = tmp_path_factory.mktemp("features")
    write_pyramid(folder / "slide.tif", PIXELS, 1.0)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[SIDE // 4 : SIDE * 3 // 4, SIDE // 4 : SIDE * 3 // 4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    torch.manual_seed(3)
    backbone = Backbone("test_resnet", 16)
    for part in backbone.modules():  # statistics as if it had been trained
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.2, 0.2)  # pyright: ignore[reportArgumentType]
    write_backbone(folder / "run", backbone, {"mean": MEAN, "std": STD, "mpp": 1.0})
    return folder


@pytest.fixture(scope="module")
def slide(folder: Path) -> Listed:
    return Listed("slide", folder / "slide.tif", mask=folder / "mask.png")


@pytest.fixture(scope="module")
def run(folder: Path) -> Candidate:
    return find_candidate(str(folder / "run"))


@pytest.fixture(scope="module")
def tiles(slide: Listed, run: Candidate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the slide's tiles, under a name with a folder and a dot."""
    out = tmp_path_factory.mktemp("tiles")
    assert features(run, [replace(slide, name="cohort/slide.1")], out, CONFIG) == Tally(1, 0, 0)
    return out / "cohort" / "slide.1.h5"


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return np.asarray(file["features"]), np.asarray(file["coords"])


@torch.no_grad()
def plain_loop(folder: Path, coords: np.ndarray) -> np.ndarray:
    """(n, g, g, c): one tile after another, cut from the pixels that the slide was made of."""
    backbone = load_backbone(folder / "run")
    grids = []
    for x, y in coords:
        tile = (PIXELS[y : y + SIZE, x : x + SIZE] / 255.0 - np.array(MEAN)) / np.array(STD)
        image = torch.from_numpy(tile.astype(np.float32)).permute(2, 0, 1)[None]
        grids.append(backbone(image)[0].permute(1, 2, 0).numpy())
    return np.stack(grids)


def test_a_tile_is_the_mean_of_its_cells_as_a_plain_loop_sees_them(folder: Path, tiles: Path) -> None:
    vectors, coords = read(tiles)
    inside = [(x, y) for y in range(128, 384, SIZE) for x in range(128, 384, SIZE)]  # of the outline, row by row
    assert coords.tolist() == [list(place) for place in inside]
    wanted = plain_loop(folder, coords).mean((1, 2))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5)
    assert vectors.std(0).max() > 0.01  # tiles do differ


def test_cells_have_their_own_places_and_average_to_their_tile(
    folder: Path, slide: Listed, run: Candidate, tiles: Path, tmp_path: Path
) -> None:
    features(run, [slide], tmp_path, replace(CONFIG, of="cells"))
    vectors, places = read(tiles)
    cells, coords = read(tmp_path / "slide.h5")
    grid = SIZE // 16  # the run's own stride
    grids = plain_loop(folder, places)
    for number, (x, y) in enumerate(places):
        for row in range(grid):
            for column in range(grid):
                at = number * grid * grid + row * grid + column
                assert coords[at].tolist() == [x + 16 * column, y + 16 * row]
                np.testing.assert_allclose(cells[at], grids[number, row, column], rtol=1e-5, atol=1e-5)
    means = cells.reshape(len(vectors), grid * grid, -1).mean(1)
    np.testing.assert_allclose(means, vectors, rtol=1e-5, atol=1e-5)


def test_places_are_level0_at_any_resolution(slide: Listed, run: Candidate, tmp_path: Path) -> None:
    features(run, [slide], tmp_path, replace(CONFIG, mpp=1.2, of="cells"))
    _, coords = read(tmp_path / "slide.h5")
    lattice = np.arange(0, SIDE) * 16 * 1.2
    assert all(np.abs(lattice - value).min() <= 1 for value in np.unique(coords))  # tiles and cells are rounded
    with h5py.File(tmp_path / "slide.h5") as file:
        facts = dict(file["coords"].attrs)
    assert (facts["patch_size"], facts["patch_size_level0"], facts["mpp"]) == (16, 19, 1.2)
    centres = coords + 8 * 1.2
    assert (centres > 128 - SIZE * 0.6).all() and (centres < 384 + SIZE * 0.6).all()


def test_workers_change_no_bit_and_batches_nothing_to_speak_of(
    slide: Listed, run: Candidate, tiles: Path, tmp_path: Path
) -> None:
    for out, device in (("workers", replace(CPU, workers=2)), ("batches", replace(CPU, batch=16))):
        features(run, [replace(slide, name="cohort/slide.1")], tmp_path / out, replace(CONFIG, device=device))
    workers, batches = (tmp_path / out / "cohort" / "slide.1.h5" for out in ("workers", "batches"))
    assert tiles.read_bytes() == workers.read_bytes()
    one, other = read(tiles), read(batches)
    assert (one[1] == other[1]).all()
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-5)


def test_mixed_precision_is_near(slide: Listed, run: Candidate, tiles: Path, tmp_path: Path) -> None:
    features(run, [slide], tmp_path, replace(CONFIG, device=replace(CPU, precision="bf16-mixed")))
    full, half = (read(path)[0] for path in (tiles, tmp_path / "slide.h5"))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.05 * np.abs(full).max()


def test_the_file_says_what_it_holds(folder: Path, run: Candidate, tiles: Path) -> None:
    with h5py.File(tiles) as file:
        assert set(file) == {"features", "coords"}
        assert file["features"].shape == (16, load_backbone(folder / "run").channels)
        assert file["coords"].dtype == np.int64
        of_coords, of_features = dict(file["coords"].attrs), dict(file["features"].attrs)
    assert of_coords == {
        "slide": str(folder / "slide.tif"),
        "name": "cohort/slide.1",
        "patch_size": SIZE,
        "patch_size_level0": SIZE,
        "overlap": 0,
        "mpp": 1.0,
        "level0_mpp": 1.0,
        "level0_width": SIDE,
        "level0_height": SIDE,
    }
    assert of_features["architecture"] == "test_resnet" and of_features["fingerprint"] == run.fingerprint
    assert of_features["mean"].tolist() == MEAN and of_features["std"].tolist() == STD
    assert of_features["of"] == "tiles" and of_features["tile_size"] == SIZE and of_features["backbone"] == "run"
    assert tiles.stat().st_size < 20_000
    with Image.open(tiles.with_suffix(".png")) as picture:
        assert picture.size == (2 * SIDE + 10, SIDE)


@pytest.mark.slow
def test_what_is_there_is_not_done_again_and_other_settings_are_refused(
    folder: Path, slide: Listed, run: Candidate, tmp_path: Path
) -> None:
    other = Listed("other", folder / "slide.tif", mask=folder / "mask.png")
    features(run, [slide], tmp_path, CONFIG)
    before = (tmp_path / "slide.h5").stat().st_mtime_ns
    assert features(run, [slide, other], tmp_path, replace(CONFIG, device=replace(CPU, batch=3))) == Tally(1, 1, 0)
    assert (tmp_path / "slide.h5").stat().st_mtime_ns == before
    for name in ("other.h5", "other.png"):
        (tmp_path / name).unlink()
    for config in (replace(CONFIG, of="cells"), replace(CONFIG, mpp=1.1), replace(CONFIG, size=128)):
        with pytest.raises(UserError, match=r"slide.h5 is of other settings \((of|mpp|size) .*--out"):
            features(run, [other, slide], tmp_path, config)
    with pytest.raises(UserError, match=r"other settings .*backbone"):
        features(replace(run, fingerprint="another"), [other, slide], tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"other settings .*mask"):
        features(run, [other, replace(slide, mask=None)], tmp_path, CONFIG)
    assert not (tmp_path / "other.h5").exists()  # refused before any slide was read
    (tmp_path / "slide.h5").write_bytes(b"text")
    with pytest.raises(UserError, match=r"slide.h5 is no file of colocate's features"):
        features(run, [slide], tmp_path, CONFIG)


def test_a_picture_of_the_users_is_left_alone_and_one_of_ours_made_up_for(
    slide: Listed, run: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, vectors = tmp_path / "slide.png", tmp_path / "slide.h5"
    picture.write_text("a thumbnail")
    with pytest.raises(UserError, match=r"slide\.png is there, but not its features: choose another"):
        features(run, [slide], tmp_path, CONFIG)
    assert picture.read_text() == "a thumbnail" and not vectors.exists()
    picture.unlink()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("colocate.prediction.features.draw_components", killed)
        features(run, [slide], tmp_path, CONFIG)
    before = vectors.stat().st_mtime_ns
    assert features(run, [slide], tmp_path, CONFIG) == Tally(1, 0, 0)
    assert picture.exists() and vectors.stat().st_mtime_ns == before


def test_slides_that_fail_are_listed_and_the_others_go_on(
    folder: Path, slide: Listed, run: Candidate, tmp_path: Path
) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    write_pyramid(tmp_path / "white.tif", np.full((256, 256, 3), 250, np.uint8), 1.0)
    shutil.copy(folder / "slide.tif", tmp_path / "cut.tif")
    torn(tmp_path / "cut.tif", 10)  # of four by four: amid the tissue
    wrong = [
        Listed("a-text", tmp_path / "text.svs"),
        Listed("b-coarse", folder / "slide.tif", mpp=4.0),
        Listed("c-white", tmp_path / "white.tif"),
        Listed("d-no-mask", folder / "slide.tif", mask=tmp_path / "gone.png"),
        replace(slide, name="e-cut", path=tmp_path / "cut.tif"),
    ]
    config = replace(CONFIG, device=replace(CPU, workers=2))
    assert features(run, [*wrong, slide], tmp_path / "out", config) == Tally(1, 0, 5)
    failed = (tmp_path / "out" / "failed.csv").read_text().splitlines()[1:]
    coarse = "has 4 micrometres per pixel, which cannot show 1"
    reasons = ["text.svs", coarse, "lower --min-tissue", "gone.png is no mask", "cut.tif"]
    assert all(reason in line for reason, line in zip(reasons, failed, strict=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["failed.csv", "slide.h5", "slide.png"]


def test_a_full_disk_ends_the_run_and_leaves_nothing(
    slide: Listed, run: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"slide.h5 was not written: the disk is full"):
        features(run, [slide], tmp_path, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_make_no_sense(run: Candidate, slide: Listed, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="random does not say at which resolution it sees tissue: give --mpp"):
        features(find_candidate("random", "test_resnet"), [slide], tmp_path, CONFIG)
    with pytest.raises(UserError, match="--size 100 is no whole number of cells of 16 px: give 96"):
        features(run, [slide], tmp_path, replace(CONFIG, size=100))
    for wrong in ({"mpp": -1.0}, {"min_tissue": 2.0}, {"size": 0}):
        with pytest.raises(UserError):
            features(run, [slide], tmp_path, FeatureConfig(**wrong))
    assert list(tmp_path.iterdir()) == []


def test_stages_that_were_not_trained_give_no_features(tmp_path: Path) -> None:
    for stride in (16, 32):
        backbone = Backbone("test_resnet", cell_stride=stride)
        write_backbone(tmp_path / f"run{stride}", backbone, {"mean": MEAN, "std": STD})
    early, last = (find_candidate(str(tmp_path / f"run{stride}")) for stride in (16, 32))
    finer = replace(CONFIG, mpp=1.0, output_stride=16)
    with pytest.raises(UserError, match=r"run16 has cells of 16 px, and its later .*: leave --output-stride out"):
        features(early, [], tmp_path / "out", finer)
    features(last, [], tmp_path / "out", finer)


def test_a_resolution_far_from_the_backbones_own_is_noted(
    run: Candidate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mpp, noted in ((0.79, True), (0.81, False), (1.24, False), (1.26, True)):
        features(run, [], tmp_path, replace(CONFIG, mpp=mpp))
        assert ("note: run was pretrained at 1 micrometres per pixel" in capsys.readouterr().err) == noted


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "slides.csv"
    table.write_text(f"path,slide,mask\n{folder}/slide.tif,one,{folder}/mask.png\n")
    options = ["--out", str(tmp_path / "out"), "--size", "64", "--accelerator", "cpu", "--workers", "0"]
    main(["features", str(folder / "run"), str(table), *options, "--mpp", "1.5"])
    assert capsys.readouterr().out.splitlines()[-1] == f"done: 1 slide in {tmp_path}/out"
    random = ["features", "random", str(folder / "slide.tif"), "--architecture", "test_resnet", "--mpp", "1"]
    main([*random, *options[2:], "--out", str(tmp_path / "random")])
    assert (tmp_path / "random" / "slide.h5").exists()
