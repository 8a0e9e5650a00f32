"""Read a run; choose the tiles of it that are shown, and the scale at which its networks see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from colocate.base.errors import TileError, UserError
from colocate.base.text import say
from colocate.data.decode import decode
from colocate.data.index import Index
from colocate.data.loader import spaced
from colocate.models.backbones import Backbone, load_backbone
from colocate.pages.curves import Rows
from colocate.training.journal import read_journal
from colocate.training.loop import build_backbone
from colocate.training.probes import settle_batch_norm
from colocate.training.recipe import Recipe, read_recipe
from colocate.training.run import resume_command


class Masked(NamedTuple):
    """Images of one size and where their glands are."""

    images: UInt8[Tensor, "n 3 h w"]
    masks: Bool[Tensor, "n h w"]


class Split(NamedTuple):
    """Training images of a probe, and test images that pretraining never saw."""

    train: Masked
    test: Masked
    names: list[str]
    """Of the test images."""


def masks_beside(index: Index, most: int = 512) -> Split | None:
    """Read the masked tiles of an index, and as test images the masked ones of the folders that it leaves out.

    At most `most` tiles a side, evenly spaced. None where tiles have no masks, none is left out, or sizes differ.
    """
    if not _mask(Path(index.name(0))).is_file():  # before a million tiles are named
        return None
    own = [Path(index.name(number)) for number in range(len(index))]
    if not all(_mask(image).is_file() for image in own):
        return None
    seen = {image.parent for image in own}
    others = [image for image in sorted(_above(own[0]).rglob("*.png")) if image.parent not in seen]
    test = [image for image in others if _mask(image).is_file()]
    if not test:
        return None
    test = spaced(test, most)
    train, asked = _read(spaced(own, most)), _read(test)
    if train is None or asked is None or train.images.shape[1:] != asked.images.shape[1:]:
        return None
    return Split(train, asked, [image.name for image in test])


def _above(image: Path) -> Path:
    """The folder called images that holds this one."""
    return next((folder for folder in image.parents if folder.name == "images"), image.parent)


def _mask(image: Path) -> Path:
    folder = _above(image)
    return folder.parent / "glands" / image.relative_to(folder)


def _read(paths: list[Path]) -> Masked | None:
    images = [decode(path.read_bytes(), str(path)) for path in paths]
    masks = []
    for path in paths:
        with Image.open(_mask(path)) as ids:
            masks.append(torch.from_numpy(np.asarray(ids) > 0))
    if len({tuple(image.shape[1:]) for image in images} | {tuple(mask.shape) for mask in masks}) > 1:
        return None
    return Masked(torch.stack(images), torch.stack(masks))


LARGEST_PX = 1024
TRIES = 10


def read_spread(index: Index, count: int, run: Path) -> list[tuple[int, UInt8[Tensor, "3 h w"]]]:
    """Read up to `count` tiles by number, evenly spaced over the index in the order of its sources.

    In place of an unreadable one comes the next that can be read.

    Raises UserError: none can be read, as after the data have moved.
    """
    found: dict[int, Tensor] = {}
    reason = ""
    for wanted in spaced(np.argsort(index.source_numbers, kind="stable").tolist(), count):
        for number in range(wanted, min(wanted + TRIES, len(index))):
            if number in found:
                break
            try:
                found[number] = index.read(number)
                break
            except TileError as error:
                reason = reason or str(error)
    if not found:
        raise UserError(
            f"none of the tiles of {run} can be read ({reason}). If they have moved, say where to: "
            + resume_command(run, "--data PLACE")
        )
    return list(found.items())


def view_px(recipe: Recipe, index: Index, stride: int) -> int:
    """Size in pixels of a whole tile as networks see it: at the finest scale of training, in whole cells.

    Training sees a tile through crops of `views.area`, enlarged or reduced to `views.size`. Other scales would ask
    the network about tissue that it never saw so large, or so small.
    """
    views = recipe.views
    px = views.size / views.area[0] ** 0.5
    if views.mpp is not None:
        known = torch.from_numpy(index.mpp.copy())
        height = min(read_spread(index, 1, index.path.parent)[0][1].shape[1:])
        px = height * known[~known.isnan()].median().item() / (views.mpp * views.area[0] ** 0.5)
    return max(1, round(min(px, LARGEST_PX) / stride)) * stride


def square(tile: UInt8[Tensor, "3 h w"], px: int) -> UInt8[Tensor, "3 px px"]:
    """The tile's middle square, resized."""
    side = min(tile.shape[1:])
    top, left = (tile.shape[1] - side) // 2, (tile.shape[2] - side) // 2
    middle = tile[:, top : top + side, left : left + side]
    return resized(middle[None], px)[0]


def resized(tiles: UInt8[Tensor, "n 3 h w"], px: int) -> UInt8[Tensor, "n 3 px px"]:
    """Square tiles at another size, antialiased."""
    if tiles.shape[2:] == (px, px):
        return tiles
    smooth: Float[Tensor, "n 3 px px"] = F.interpolate(tiles.float(), (px, px), mode="bicubic", antialias=True)
    return smooth.round().clamp(0, 255).to(torch.uint8)


SETTLING = 64  # tiles whose statistics batch norm takes


@dataclass(frozen=True)
class Shown:
    """A run as the parts of the page need it."""

    run: Path
    recipe: Recipe
    rows: Rows
    index: Index
    networks: dict[str, Backbone]
    """The backbone before and after training, by name."""
    px: int
    """Height and width that tiles are given to the networks with."""

    def tiles(self, count: int) -> tuple[list[str], UInt8[Tensor, "n 3 h w"]]:
        """Names and middle squares of tiles spread over the index."""
        found = read_spread(self.index, count, self.run)
        names = [Path(self.index.name(number)).name for number, _ in found]
        return names, torch.stack([square(tile, self.px) for _, tile in found])


def read_recipe_of(run: Path) -> Recipe:
    """The recipe that a run folder keeps. Raises UserError if it is not the folder of a run."""
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is not the folder of a run (it has no recipe.json): give the --out of a pretraining")
    return read_recipe(run / "recipe.json")


def read_saved(run: Path) -> tuple[Recipe, Rows]:
    """The recipe and the journal of a run. Raises UserError if it is none, or has no backbone yet."""
    recipe = read_recipe_of(run)
    rows = read_journal(run) if (run / "journal.csv").is_file() else []
    if not rows or not (run / "backbone.json").is_file():
        raise UserError(
            f"{run} has no backbone yet: wait for its first checkpoint, or go on with it: {resume_command(run)}"
        )
    return recipe, rows


def read_run(run: Path) -> Shown:
    """Read a run; both networks have batch-norm statistics of the same plain tiles, or their own if frozen.

    The network before training is left out where its weights can no longer be had.
    """
    recipe, rows = read_saved(run)
    index, trained = Index.open(run / "tiles.arrow"), load_backbone(run)
    config, networks = recipe.encoder, {"pretrained": trained}
    try:
        networks = {f"{Path(config.init).stem} weights": build_backbone(recipe), **networks}
    except UserError as error:
        say(f"without the network before training: {error}")
    shown = Shown(run, recipe, rows, index, {}, view_px(recipe, index, trained.stride))
    _, settling = shown.tiles(SETTLING)
    for name, network in networks.items():
        normalised = (settling, recipe.views.mean, recipe.views.std)
        shown.networks[name] = network.eval() if config.freeze_norm else settle_batch_norm(network, *normalised)
    return shown
