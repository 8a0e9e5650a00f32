"""The page of any run: drawn, small, the same each time, and a clear sentence where it cannot be."""

from __future__ import annotations

import shlex
import shutil
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
from colocate.pages.facts import facts, next_commands, own_settings, warnings
from colocate.pages.page import charts_of, report
from colocate.pages.panels import matches
from colocate.pages.sample import masks_beside, read_run, read_spread, spread, square, view_px
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
def drawn(phantom_run: Path) -> tuple[Path, Path]:
    """Its page and the same as a picture."""
    picture = phantom_run.parent / "report.png"
    return report(phantom_run, picture=picture), picture


@pytest.mark.slow
def test_the_page_is_one_file_with_all_in_it(phantom_run: Path, drawn: tuple[Path, Path]) -> None:
    path, _ = drawn
    assert path == phantom_run / "report.html"
    assert 100_000 < path.stat().st_size < 5_000_000
    page = path.read_text()
    assert page.count("<img ") == page.count('alt="') == page.count('src="data:image/webp') == 2 * 3 + 6 * 3 + 6 * 2
    assert "://" not in page and "<script" not in page  # nothing from elsewhere
    for title in ("same tissue", "tells apart", "How training went", "know glands", "What was trained", "How to go on"):
        assert f"{title}" in page


@pytest.mark.slow
def test_the_picture_is_of_decent_size(drawn: tuple[Path, Path]) -> None:
    _, path = drawn
    assert 20_000 < path.stat().st_size < 300_000
    with Image.open(path) as page:
        pixels = np.asarray(page.convert("RGB"))
    assert pixels.shape[1] > 900 and pixels.shape[0] > pixels.shape[1]
    inked = (pixels < 250).any(2)
    assert all(part.any() for part in np.array_split(inked, 10))  # something in every tenth of the height


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(phantom_run: Path, drawn: tuple[Path, Path], tmp_path: Path) -> None:
    report(phantom_run, tmp_path / "again.html", tmp_path / "again.png")
    for path in drawn:
        assert path.read_bytes() == (tmp_path / f"again{path.suffix}").read_bytes()


@pytest.mark.slow
def test_any_run_has_a_page_and_one_without_masks_no_probe(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(plain_run), "--out", str(tmp_path / "plain.html")])
    assert str(tmp_path / "plain.html") in capsys.readouterr().out
    assert "know glands" not in (tmp_path / "plain.html").read_text()


def test_a_page_without_the_weights_that_a_run_began_with(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    saved = run / "recipe.json"
    saved.write_text(saved.read_text().replace('"init": "random"', '"init": "gone.pth"'))
    page = report(run).read_text()
    assert "without the network before training: gone.pth: no such file" in capsys.readouterr().out
    assert "by pretrained" in page and "by gone weights" not in page


def test_a_page_named_as_a_picture_is_refused(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for runs in ([plain_run], [plain_run, tmp_path]):
        with pytest.raises(SystemExit):
            main(["report", *map(str, runs), "--out", str(tmp_path / "page.png")])
        assert "--png FILE" in capsys.readouterr().err
    assert not (tmp_path / "page.png").exists()


def test_before_is_the_seeds_network_and_after_the_trained_one(phantom_run: Path) -> None:
    shown = read_run(phantom_run)
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


def test_shown_tiles_are_spread_over_sources(phantom_run: Path) -> None:
    index = Index.open(phantom_run / "tiles.arrow")
    chosen = spread(index, 8)
    assert sorted(index.source_numbers[chosen].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(chosen)) == 8


def test_the_next_tile_stands_in_for_an_unreadable_one(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", 10, size=64)
    index = Index.build(tiles, tmp_path / "tiles.arrow")
    middle = Path(index.name(spread(index, 1)[0]))
    middle.write_bytes(b"")
    ((number, _),) = read_spread(index, 1, tmp_path)
    assert Path(index.name(number)).name == f"{int(middle.stem) + 1:02}.png"


def test_tiles_are_shown_at_the_finest_scale_of_training(phantom_run: Path) -> None:
    index = Index.open(phantom_run / "tiles.arrow")
    recipe = read_run(phantom_run).recipe
    assert view_px(recipe, index, 16) == 64  # a quarter of a tile's area filled a view of 32 px
    assert view_px(replace(recipe, views=ViewConfig(size=48, area=(0.25, 1.0))), index, 16) == 96
    physical = ViewConfig(size=32, area=(1.0, 1.0), mpp=4.0)  # tiles of 64 px at 2 um: half as many at 4 um
    assert view_px(replace(recipe, views=physical), index, 16) == 32


def test_a_tile_is_shown_by_its_middle_square() -> None:
    tile = torch.zeros(3, 20, 60, dtype=torch.uint8)
    tile[:, :, 20:40] = 200
    assert (square(tile, 40) == 200).float().mean() > 0.99
    assert square(tile, 40).shape == (3, 40, 40)


def test_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    message = capsys.readouterr().err
    assert "is not the folder of a run" in message and message.count("\n") == 1


def test_a_run_without_a_backbone_says_how_to_get_one(plain_run: Path, tmp_path: Path) -> None:
    shutil.copytree(plain_run, tmp_path / "run")
    (tmp_path / "run" / "backbone.json").unlink()
    with pytest.raises(UserError, match=r"no backbone yet.*--resume"):
        report(tmp_path / "run")


def test_tiles_that_moved_are_found_again_by_the_command_that_the_error_names(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", 10, size=64)
    run = pretrain(tiny_recipe(tiles, tmp_path / "run", steps=1))
    tiles.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"none of the tiles.*--data PLACE --resume") as caught:
        report(run)
    command = str(caught.value).partition("colocate pretrain ")[2].replace("PLACE", str(tmp_path / "moved"))
    weights = (run / "backbone.safetensors").stat().st_mtime_ns
    main(["pretrain", *command.split()])
    assert (run / "backbone.safetensors").stat().st_mtime_ns == weights  # nothing was trained again
    assert report(run).is_file()


def test_warnings_say_what_is_wrong_and_since_when(phantom_run: Path, tmp_path: Path) -> None:
    shown = read_run(phantom_run)
    fine = {"step": 3.0, "feature_std": 0.9, "effective_rank": 20.0, "waiting": 0.01, "crowded": 0.0}
    assert warnings(replace(shown, rows=[fine])) == []
    rows = [fine | {"step": 1.0}, fine | {"step": 2.0, "feature_std": 0.04}, fine | {"waiting": 0.4, "crowded": 0.3}]
    collapse, waiting, crowded = warnings(replace(shown, rows=rows))
    assert collapse.startswith("At step 2 features look collapsed (std 0.04") and "at step 3 they no longer" in collapse
    assert "40%" in waiting and "30%" in crowded
    (unfinished,) = warnings(replace(shown, recipe=replace(shown.recipe, steps=5), rows=[fine]))
    assert unfinished == "It is not done: step 3 of 5."
    (places,) = warnings(replace(shown, rows=[fine | {"displaced": 0.0, "displaced_chance": 0.2}]))
    assert "places rather than tissue" in places
    shutil.copytree(phantom_run, tmp_path / "run")
    (tmp_path / "run" / "skipped.csv").write_text("tile,reason\na.png,is no picture\n")
    (skipped,) = warnings(replace(shown, run=tmp_path / "run", rows=[fine]))
    assert skipped.startswith("1 tile could not be read, and was left out")


def test_the_page_of_a_run_at_work_says_of_which_step_its_backbone_is(phantom_run: Path) -> None:
    """The journal goes on until the next checkpoint, the backbone does not."""
    shown = read_run(phantom_run)
    rows = [*shown.rows, dict(shown.rows[-1]) | {"step": 4.0}]
    shown = replace(shown, recipe=replace(shown.recipe, steps=5), rows=rows)
    assert "It is not done: step 4 of 5; its backbone, and so what it tells apart, is of step 3." in warnings(shown)
    assert facts(shown)["Network"].endswith("from random weights, after step 3")


def test_views_are_not_said_to_be_those_of_training(phantom_run: Path) -> None:
    """With balance "sources" they are not: there views depend on the tile's place in the epoch."""
    shown = read_run(phantom_run)
    assert "was given" not in matches(replace(shown, recipe=replace(shown.recipe, balance="sources"))).explanation


@pytest.mark.slow
def test_the_commands_to_go_on_are_those_of_the_command_line(phantom_run: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a 'run' $HOME;"
    shutil.copytree(phantom_run, odd)
    shown = replace(read_run(odd), rows=[{"step": 2.0}])
    commands = [shlex.split(command) for _, command in next_commands(shown)]
    assert [words[:2] for words in commands] == [
        ["colocate", name] for name in ("pretrain", "evaluate", "features", "export", "report", "pretrain")
    ]
    assert all(any(word.startswith(str(odd)) for word in words) for words in commands)
    done = replace(shown, rows=[{"step": 3.0}])
    assert len(next_commands(done)) == 5
    (_, repeat) = next_commands(done)[-1]
    main(shlex.split(repeat.replace("OTHER_RUN", shlex.quote(str(tmp_path / "other"))))[1:])
    assert (tmp_path / "other" / "backbone.safetensors").is_file()
    export = next(words for words in commands if words[1] == "export")
    main(export[1:])
    assert (odd / "backbone.pth").is_file()


def test_the_page_says_the_rate_that_was_trained_with(phantom_run: Path) -> None:
    shown = read_run(phantom_run)
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


@pytest.mark.slow
def test_a_probed_run_shows_its_history(phantom_run: Path, tmp_path: Path) -> None:
    assert len(charts_of(read_run(phantom_run))) == 4
    shutil.copytree(phantom_run, tmp_path / "run")
    (tmp_path / "run" / "probes.csv").write_text("step,epoch,dice\n1,0.5,0.41\n3,1.5,0.57\n")
    probe = charts_of(read_run(tmp_path / "run"))[-1]
    assert probe.title.startswith("Probe") and probe.lines[0].y.tolist() == [0.41, 0.57]
