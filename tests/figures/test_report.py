"""The page of any run: drawn, small, the same each time, and a clear sentence where it cannot be."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.core.settings import ViewConfig
from colocate.data.index import Index
from colocate.data.phantom import write_phantom
from colocate.models.backbones import load_backbone
from colocate.pages.facts import FEWEST_STEPS, facts, next_commands, own_settings, warnings
from colocate.pages.page import charts_of, report
from colocate.pages.sample import Shown, masks_beside, read_run, read_spread, square, view_px
from colocate.training.loop import build_method, pretrain
from colocate.training.recipe import EncoderConfig
from colocate.training.recipes import find_recipe
from tests.tiny import tiny_recipe, write_tiles


@pytest.fixture(scope="module")
def phantom_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps on the tiles of four of five phantom slides, which have masks."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder / "tissue", 40, size=64, mpp=2.0)
    encoder, views = EncoderConfig("resnet18", output_stride=16), ViewConfig(size=32, area=(0.25, 1.0))
    recipe = tiny_recipe(folder / "tissue" / "tiles.csv", folder / "run", encoder=encoder, views=views, steps=3)
    return pretrain(replace(recipe, hold_out=("source=slide04",)))


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on nine pictures of two sizes without masks."""
    folder = tmp_path_factory.mktemp("plain")
    write_tiles(folder / "tiles", 5, size=80)
    write_tiles(folder / "tiles" / "other", 4, size=56)
    return pretrain(tiny_recipe(folder / "tiles", folder / "run", steps=2))


@pytest.fixture(scope="module")
def drawn(phantom_run: Path) -> Iterator[tuple[Path, Path]]:
    """Its page and the same as a picture, of one size, as is what is drawn after it."""
    picture = phantom_run.parent / "report.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("colocate.pages.style.DPI", (80,))
        yield report(phantom_run, picture=picture), picture


@pytest.fixture(scope="module")
def shown(phantom_run: Path) -> Shown:
    return read_run(phantom_run)


@pytest.mark.slow
def test_the_page_is_one_file_with_all_in_it(phantom_run: Path, drawn: tuple[Path, Path]) -> None:
    path, picture = drawn
    assert path == phantom_run / "report.html"
    assert 100_000 < path.stat().st_size < 5_000_000
    page = path.read_text()
    assert page.count("<img ") == page.count('alt="') == page.count('src="data:image/webp') == 2 * 3 + 6 * 3 + 6 * 2
    assert "://" not in page and "<script" not in page  # nothing from elsewhere
    for title in ("same tissue", "tells apart", "How training went", "know glands", "What was trained", "Next steps"):
        assert f"{title}" in page
    assert "was given" not in page  # views are not said to be those of training, which may balance its sources
    assert 20_000 < picture.stat().st_size < 300_000
    with Image.open(picture) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 900 and pixels.shape[0] > pixels.shape[1]
    inked = (pixels < 250).any(2)
    assert all(part.any() for part in np.array_split(inked, 10))  # something in every tenth of the height


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(phantom_run: Path, drawn: tuple[Path, Path], tmp_path: Path) -> None:
    report(phantom_run, tmp_path / "again.html", tmp_path / "again.png")
    for path in drawn:
        assert path.read_bytes() == (tmp_path / f"again{path.suffix}").read_bytes()


def test_a_page_without_masks_and_without_the_weights_that_the_run_began_with(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    saved = run / "recipe.json"
    saved.write_text(saved.read_text().replace('"init": "random"', '"init": "gone.pth"'))
    main(["report", str(run), "--out", str(tmp_path / "plain.html")])
    said = capsys.readouterr().out
    assert "without the network before training: gone.pth: no such file" in said
    assert str(tmp_path / "plain.html") in said
    page = (tmp_path / "plain.html").read_text()
    assert "by pretrained" in page and "by gone weights" not in page and "know glands" not in page


def test_a_page_named_as_a_picture_is_refused(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for runs in ([plain_run], [plain_run, tmp_path]):
        with pytest.raises(SystemExit):
            main(["report", *map(str, runs), "--out", str(tmp_path / "page.png")])
        assert "--png FILE" in capsys.readouterr().err
    assert not (tmp_path / "page.png").exists()


def test_before_is_the_seeds_network_and_after_the_trained_one(phantom_run: Path, shown: Shown) -> None:
    before, after = shown.networks.values()
    first = build_method(shown.recipe).query.backbone.state_dict()
    last = load_backbone(phantom_run).state_dict()
    learned = [name for name in first if name.endswith("weight")]
    assert all(torch.equal(before.state_dict()[name], first[name]) for name in learned)
    assert all(torch.equal(after.state_dict()[name], last[name]) for name in learned)
    assert not torch.equal(first["net.conv1.weight"], last["net.conv1.weight"])
    assert not before.training and not after.training


def test_masks_are_those_of_the_run_and_of_slides_left_out(phantom_run: Path) -> None:
    tissue = phantom_run.parent / "tissue"
    assert masks_beside(Index.build(tissue / "tiles.csv", phantom_run.parent / "all.arrow")) is None
    split = masks_beside(Index.open(phantom_run / "tiles.arrow"))
    assert split is not None
    assert (len(split.train.images), len(split.test.images)) == (32, 8)
    first = sorted((tissue / "images" / "slide04").iterdir())[0]
    assert np.array_equal(split.test.images[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(first)))
    ids = np.asarray(Image.open(tissue / "glands" / "slide04" / first.name))
    assert np.array_equal(split.test.masks[0].numpy(), ids > 0)


def test_shown_tiles_are_spread_over_sources(shown: Shown) -> None:
    chosen = [number for number, _ in read_spread(shown.index, 8, shown.run)]
    assert sorted(shown.index.source_numbers[chosen].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(chosen)) == 8


def test_the_next_tile_stands_in_for_an_unreadable_one(tmp_path: Path) -> None:
    index = Index.build(write_tiles(tmp_path / "tiles", 10, size=64), tmp_path / "tiles.arrow")
    ((middle, _),) = read_spread(index, 1, tmp_path)
    Path(index.name(middle)).write_bytes(b"")
    ((number, _),) = read_spread(index, 1, tmp_path)
    assert number == middle + 1


def test_tiles_are_shown_at_the_finest_scale_of_training(shown: Shown) -> None:
    index, recipe = shown.index, shown.recipe
    assert view_px(recipe, index, 16) == 64  # a quarter of a tile's area filled a view of 32 px
    assert view_px(replace(recipe, views=ViewConfig(size=48, area=(0.25, 1.0))), index, 16) == 96
    physical = ViewConfig(size=32, area=(1.0, 1.0), mpp=4.0)  # tiles of 64 px at 2 um: half as many at 4 um
    assert view_px(replace(recipe, views=physical), index, 16) == 32


def test_a_tile_is_shown_by_its_middle_square() -> None:
    tile = torch.zeros(3, 20, 60, dtype=torch.uint8)
    tile[:, :, 20:40] = 200
    assert (square(tile, 40) == 200).float().mean() > 0.99
    assert square(tile, 40).shape == (3, 40, 40)


def test_a_folder_without_a_run_or_without_a_backbone_says_what_to_do(plain_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    (run / "backbone.json").unlink()
    for folder, says in ((tmp_path, "is not the folder of a run"), (run, r"no backbone yet.*--resume")):
        with pytest.raises(UserError, match=says):
            report(folder)


def test_tiles_that_moved_are_found_again_by_the_command_that_the_error_names(plain_run: Path) -> None:
    """And by the tests that come after it."""
    moved = (plain_run.parent / "tiles").rename(plain_run.parent / "moved")
    with pytest.raises(UserError, match=r"none of the tiles.*--data PLACE --resume") as caught:
        report(plain_run)
    command = str(caught.value).partition("colocate pretrain ")[2].replace("PLACE", str(moved))
    weights = (plain_run / "backbone.safetensors").stat().st_mtime_ns
    main(["pretrain", *command.split()])
    assert (plain_run / "backbone.safetensors").stat().st_mtime_ns == weights  # nothing was trained again
    assert report(plain_run).is_file()


def test_warnings_say_what_is_wrong_and_since_when(shown: Shown, tmp_path: Path) -> None:
    assert any(said.startswith("After 3 steps it is far too early to judge this run") for said in warnings(shown))
    shown = replace(shown, recipe=replace(shown.recipe, steps=FEWEST_STEPS))
    fine = {"step": 200.0, "feature_std": 0.9, "effective_rank": 20.0, "waiting": 0.01, "crowded": 0.0}
    assert warnings(replace(shown, rows=[fine])) == []
    rows = [fine | {"step": 1.0}, fine | {"step": 2.0, "feature_std": 0.04}, fine | {"waiting": 0.4, "crowded": 0.3}]
    collapse, waiting, crowded = warnings(replace(shown, rows=rows))
    assert collapse.startswith("At step 2 features look collapsed (std 0.04") and "step 200 they no longer" in collapse
    assert "40%" in waiting and "30%" in crowded
    (places,) = warnings(replace(shown, rows=[fine | {"displaced": 0.0, "displaced_chance": 0.2}]))
    assert "places rather than tissue" in places
    shutil.copytree(shown.run, tmp_path / "run")
    (tmp_path / "run" / "skipped.csv").write_text("tile,reason\na.png,is no picture\n")
    (skipped,) = warnings(replace(shown, run=tmp_path / "run", rows=[fine]))
    assert skipped.startswith("1 tile could not be read, and was left out")


def test_the_page_of_a_run_at_work_says_of_which_step_its_backbone_is(shown: Shown) -> None:
    """The journal goes on until the next checkpoint, the backbone does not."""
    for step, more in ((3.0, ""), (4.0, "; its backbone, and so the pictures of its features, are from step 3")):
        its = replace(shown, recipe=replace(shown.recipe, steps=5), rows=[dict(shown.rows[-1]) | {"step": step}])
        assert f"It is not finished: step {step:.0f} of 5{more}." in warnings(its)
        assert facts(its)["Network"].endswith("from random weights, after step 3")


@pytest.mark.slow
def test_the_commands_to_go_on_are_those_of_the_command_line(shown: Shown, tmp_path: Path) -> None:
    odd = tmp_path / "a 'run' $HOME;"
    shutil.copytree(shown.run, odd)
    begun = replace(shown, run=odd, rows=[{"step": 2.0}])
    commands = [shlex.split(command) for _, command in next_commands(begun)]
    assert [words[:2] for words in commands] == [
        ["colocate", name] for name in ("pretrain", "evaluate", "features", "export", "report", "pretrain")
    ]
    assert all(any(word.startswith(str(odd)) for word in words) for words in commands)
    done = replace(begun, rows=[{"step": 3.0}])
    assert len(next_commands(done)) == 5
    (_, repeat) = next_commands(done)[-1]
    main(shlex.split(repeat.replace("OTHER_RUN", shlex.quote(str(tmp_path / "other"))))[1:])
    assert (tmp_path / "other" / "backbone.safetensors").is_file()
    export = next(words for words in commands if words[1] == "export")
    main(export[1:])
    assert (odd / "backbone.pth").is_file()


def test_the_page_says_the_rate_that_was_trained_with(shown: Shown) -> None:
    for scale_lr, rate in ((True, "0.15"), (False, "0.3")):
        optim = replace(shown.recipe.optim, lr=0.3, scale_lr=scale_lr)
        recipe = replace(shown.recipe, optim=optim, batch=64, accumulate=2)
        told = facts(replace(shown, recipe=recipe))["Optimiser"]
        assert told == f"sgd, learning rate {rate}, batch 64 x 2"


def test_settings_beside_those_of_the_named_recipe() -> None:
    recipe = find_recipe("plm")
    assert own_settings(recipe) == []
    assert own_settings(replace(recipe, batch=32, data="tiles", out="run")) == [["batch", "32", "256"]]
    assert own_settings(replace(recipe, name="my-own")) is None
    assert own_settings(replace(recipe, name="mine.py:recipe")) is None  # whose code is not run for a page


def test_a_probed_run_shows_its_history(shown: Shown, tmp_path: Path) -> None:
    assert len(charts_of(shown)) == 4
    (tmp_path / "probes.csv").write_text("step,epoch,dice\n1,0.5,0.41\n3,1.5,0.57\n")
    probe = charts_of(replace(shown, run=tmp_path))[-1]
    assert probe.title.startswith("Probe") and probe.lines[0].y.tolist() == [0.41, 0.57]
