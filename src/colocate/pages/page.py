"""Draw a run as one page: matched cells, features before and after, curves, glands found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.text import counted
from colocate.data.index import Index
from colocate.data.loader import spaced
from colocate.models.backbones import Backbone, load_backbone
from colocate.pages.compare import read_recipe_of
from colocate.pages.curves import Rows, draw_chart
from colocate.pages.matches import draw_pair, training_pair
from colocate.pages.sample import Split, masks_beside, read_spread, resized, square, view_px
from colocate.pages.style import BLUE, GREEN, INK, ORANGE, SMALL, SOFT, TEXT, heading, picture, png
from colocate.training.journal import loss_terms, read_journal
from colocate.training.loop import build_backbone
from colocate.training.probes import cell_features, nearest_neighbour_probe, settle_batch_norm
from colocate.training.recipe import Recipe
from colocate.training.run import resume_command


@final
class Components(NamedTuple):
    """The three directions in which unit vectors differ most, as red, green and blue."""

    mean: Float64[Tensor, " c"]
    axes: Float64[Tensor, "c 3"]
    low: Float64[Tensor, "3"]
    """Scores at the 2nd percentile, which are dark; a few odd vectors do not wash out the rest."""
    high: Float64[Tensor, "3"]
    """At the 98th: bright."""
    share: float
    """Of the variance."""

    def colours(self, vectors: Float[Tensor, "n c"]) -> Float32[Tensor, "n 3"]:
        """In [0, 1]."""
        scores = (F.normalize(vectors.double(), dim=1) - self.mean) @ self.axes
        return ((scores - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1).float()


def principal_components(vectors: Float[Tensor, "n c"]) -> Components:
    """The components of n vectors, whose lengths do not count."""
    unit = F.normalize(vectors.double(), dim=1)
    mean = unit.mean(0)
    centred = unit - mean
    spread, axes = torch.linalg.eigh(centred.mT @ centred)  # ascending; c x c, however many vectors there are
    axes = axes[:, -3:].flip(1)
    scores = centred @ axes
    # A component has no sign of its own: the longer tail is made the bright end.
    sign = torch.where(scores.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = torch.quantile(scores * sign, torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    share = (spread[-3:].sum() / spread.sum().clamp_min(1e-300)).item()
    return Components(mean, axes * sign, low, high, share)


def principal_colours(cells: Float[Tensor, "n g f c"]) -> tuple[Float[Tensor, "n g f 3"], float]:
    """Red, green and blue in [0, 1] of all n tiles' cells, and the share of variance that they hold.

    Fitted jointly, so that a colour means the same in every tile.
    """
    components = principal_components(cells.flatten(0, 2))
    return components.colours(cells.flatten(0, 2)).view(*cells.shape[:3], 3), components.share


WASH = np.array([0, 158, 115])  # of cells called gland


def draw_segmented(
    axes: Axes,
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "y x"],
    predicted: Bool[np.ndarray, "g f"],
) -> None:
    """A tile: cells called gland in green, the rest faded, the true glands outlined."""
    rows = np.arange(image.shape[0]) * predicted.shape[0] // image.shape[0]
    cols = np.arange(image.shape[1]) * predicted.shape[1] // image.shape[1]
    called = predicted[rows][:, cols, None]
    washed = np.where(called, 0.55 * image + 0.45 * WASH, 0.55 * image + 0.45 * 255)
    picture(axes, washed.round().astype(np.uint8))
    if mask.any() and not mask.all():
        y, x = ((np.arange(own) + 0.5) * shown / own for own, shown in zip(mask.shape, image.shape[:2], strict=True))
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[INK], linewidths=1.1)


WIDTH = 12  # inches
SHOWN = 6  # tiles in a row
SETTLING = 64  # tiles whose statistics batch norm takes
CHOICE = 12  # epochs that the pair of views is taken from
CURVES = {
    "Correspondence accuracy": {"correspondence": ("measured", GREEN), "correspondence_chance": ("chance", SOFT)},
    "Effective rank of whole views": {"effective_rank": ("rank", BLUE)},
    "Feature standard deviation": {"feature_std": ("std", ORANGE)},
}
"""Charts of the journal beside the loss: label and colour by column."""


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

    def tiles(self, count: int) -> UInt8[Tensor, "n 3 h w"]:
        """The middle squares of tiles spread over the index."""
        return torch.stack([square(tile, self.px) for _, tile in read_spread(self.index, count, self.run)])


def report(run: Path, out: Path | None = None) -> Path:
    """Draw the page of a run as `out` (default RUN/report.png); returns where it is.

    The same run gives the same page: tiles are taken evenly spaced, and the network before training is built anew
    from the recipe's seed.

    Raises:
        UserError: no run there, or one without a backbone yet, or its tiles have moved away.
    """
    run = Path(run)
    out = run / "report.png" if out is None else Path(out)
    shown = read_run(run)
    split = masks_beside(shown.index)
    sections = [(_title, 0.6), (_matches, 3.1), (_features, 6.3), (_curves, 2.9)]
    sections += [(partial(_probe, split=split), 4.5)] if split else []
    heights = [height for _, height in sections]
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor="white")
    parts: Any = figure.subfigures(len(sections), 1, height_ratios=heights)
    for part, (draw, _) in zip(parts, sections, strict=True):
        draw(part, shown)
    packed = png(figure)
    write_atomically(out, packed)
    return out


def read_run(run: Path) -> Shown:
    """Read a run; both networks have batch-norm statistics of the same plain tiles, or their own if frozen."""
    recipe = read_recipe_of(run)
    rows = read_journal(run) if (run / "journal.csv").is_file() else []
    if not rows or not (run / "backbone.json").is_file():
        raise UserError(
            f"{run} has no backbone yet: wait for its first checkpoint, or go on with it: {resume_command(run)}"
        )
    index, trained = Index.open(run / "tiles.arrow"), load_backbone(run)
    config = recipe.encoder
    initial = Backbone(config.backbone, config.output_stride, cell_stride=config.cell_stride)
    initial.load_state_dict(build_backbone(recipe).state_dict())
    shown = Shown(run, recipe, rows, index, {}, view_px(recipe, index, trained.stride))
    settling = shown.tiles(SETTLING)
    for name, network in ((f"{Path(config.init).stem} weights", initial), ("pretrained", trained)):
        normalised = (settling, recipe.views.mean, recipe.views.std)
        shown.networks[name] = network.eval() if config.freeze_norm else settle_batch_norm(network, *normalised)
    return shown


def _title(part: SubFigure, shown: Shown) -> None:
    recipe, index = shown.recipe, shown.index
    written = datetime.fromtimestamp((shown.run / "backbone.json").stat().st_mtime, UTC)
    data = Path(recipe.data)
    name = data.parent.name if index.kind in ("list", "table") else data.name
    facts = [
        f"{recipe.encoder.backbone}, {recipe.views.size} px views",
        f"{counted(len(index), 'tile')} of {counted(len(index.sources), 'source')}",
        f"{counted(int(shown.rows[-1]['step']), 'step')} of {counted(recipe.batch * recipe.accumulate, 'pair')}",
        f"seed {recipe.seed}",
        f"{written:%d %B %Y}",
    ]
    heading(part, f"{recipe.name or 'pretraining'} on {name}", "  ·  ".join(facts))


def _axes(part: SubFigure, rows: int, columns: int, *, left: float = 1.2, below: float = 0.1, gap: float = 0.06) -> Any:
    """Axes in a grid under the heading of a part: an array of `rows` and `columns`. Margins in inches."""
    height = part.bbox.height / part.dpi
    # A constrained layout differs from one drawing to the next by rounding.
    margins = {"left": left / WIDTH, "right": 0.99, "top": 1 - 0.95 / height, "bottom": below / height}
    return part.subplots(rows, columns, squeeze=False, gridspec_kw=margins | {"wspace": gap, "hspace": gap})


def _matches(part: SubFigure, shown: Shown) -> None:
    heading(
        part,
        "Which cells show the same tissue",
        "Two crops of a tile, and the views of them that the network was given. A cell of view 1 is matched with the "
        "cells of view 2 that share its tissue:\nthe larger the share, the stronger the colour.",
    )
    recipe, index = shown.recipe, shown.index
    network = next(iter(shown.networks.values()))
    with torch.no_grad():
        high, wide = network(torch.zeros(1, 3, recipe.views.size, recipe.views.size)).shape[2:]
    epochs = min(CHOICE, max(1, int(shown.rows[-1]["epoch"])))
    boxes = _axes(part, 1, 6, left=0.1).reshape(2, 3)
    for row, (number, tile) in zip(boxes, read_spread(index, 2, shown.run), strict=False):
        mpp = float(index.mpp[number])
        pair = training_pair(tile, number, recipe.views, recipe.seed, (high, wide), mpp=mpp, epochs=epochs)
        for axes, name in zip(row, ("tile with both crops", "view 1", "view 2"), strict=True):
            axes.set_title(name, fontsize=SMALL, color=SOFT, loc="left", pad=4)
        draw_pair(tuple(row), pair)


def _label(axes: Axes, words: str) -> None:
    axes.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=TEXT, color=INK)


def _features(part: SubFigure, shown: Shown) -> None:
    heading(
        part,
        "What the backbone tells apart",
        "The first three principal components of its cells as red, green and blue: cells of like colour have like "
        "features. Fitted for each row on its own,\nso that colours compare along a row, not between rows.",
    )
    tiles, views = shown.tiles(SHOWN), shown.recipe.views
    first, *rows = _axes(part, 1 + len(shown.networks), len(tiles))
    for axes, tile in zip(first, tiles, strict=True):
        picture(axes, tile.permute(1, 2, 0).numpy())
    _label(first[0], "tile")
    for row, (name, network) in zip(rows, shown.networks.items(), strict=True):
        colours, share = principal_colours(cell_features(network, tiles, views.mean, views.std))
        for axes, cells in zip(row, colours, strict=True):
            picture(axes, (cells * 255).round().to(torch.uint8).numpy(), smooth=False)
        _label(row[0], f"{name}\n({share:.0%} of\nvariance)")


def _curves(part: SubFigure, shown: Shown) -> None:
    heading(
        part,
        "How training went",
        "Correspondence: how often a cell's most similar cell of the other view truly shares tissue with it. "
        "Numbers: means over the last tenth of the rows.",
    )
    recipe = shown.recipe
    filling = recipe.method.filling(recipe.batch) / recipe.accumulate
    terms = zip(loss_terms(shown.rows), cycle((BLUE, ORANGE, GREEN)), strict=False)
    charts = {"Loss": {"loss": ("total", INK)} | {name: (name, colour) for name, colour in terms}} | CURVES
    boxes = _axes(part, 1, len(charts), left=0.5, below=0.5, gap=0.25)[0]
    for axes, (title, lines) in zip(boxes, charts.items(), strict=True):
        draw_chart(axes, shown.rows, title, lines, filling if "loss" in lines else 0)


def _probe(part: SubFigure, shown: Shown, split: Split) -> None:
    views = shown.recipe.views
    train, test = (resized(side.images, shown.px) for side in (split.train, split.test))
    scores = {
        name: nearest_neighbour_probe(
            network, train, split.train.masks, test, split.test.masks, mean=views.mean, std=views.std
        )
        for name, network in shown.networks.items()
    }
    memory = next(iter(scores.values())).memory
    heading(
        part,
        "Does it know glands?",
        f"Nothing is trained here: each cell of {counted(len(test), 'tile')} of slides that pretraining never saw "
        f"takes the majority of its 20 nearest among {memory:,} cells\nwhose glands are known. Green: called gland. "
        "Outlines: the truth. Dice is that of all cells of these tiles.",
    )
    chosen = spaced(range(len(test)), SHOWN)
    for row, (name, score) in zip(_axes(part, len(scores), len(chosen)), scores.items(), strict=True):
        for axes, number in zip(row, chosen, strict=True):
            image, mask = test[number].permute(1, 2, 0).numpy(), split.test.masks[number].numpy()
            draw_segmented(axes, image, mask, score.predicted[number].numpy())
        _label(row[0], f"{name}\nDice {score.dice:.2f}")
