"""Pictures of a run: matched cells, features before and after, glands found. Drawn on a sheet, or each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from torch import Tensor

from colocate.base.files import encoded
from colocate.base.text import counted
from colocate.data.loader import spaced
from colocate.pages.matches import draw_pair, training_pair
from colocate.pages.sample import Shown, Split, read_spread, resized
from colocate.pages.style import INK, SMALL, SOFT, TEXT, heading, picture
from colocate.training.probes import cell_features, nearest_neighbour_probe

SHOWN = 6  # tiles beside each other
WIDTH = 12  # inches of a sheet
ALONE_PX = 400  # side of a picture on its own


class Pictures(NamedTuple):
    """What belongs together: a tile, and what is made of it."""

    name: str
    """Of the tile."""
    alts: list[str]
    """What each picture shows, in words."""
    draw: Callable[[Sequence[Axes]], None]
    """Fills as many axes."""


class Panel(NamedTuple):
    """Pictures with a title and what they mean."""

    title: str
    explanation: str
    labels: list[str]
    """Of each picture of a set."""
    sets: list[Pictures]
    in_rows: bool = False
    """Each set is a row, with labels above; else a column, with labels at the left."""


def wrapped(words: str) -> str:
    """In lines as long as a sheet is wide."""
    return fill(words, 150)


def draw_panel(part: SubFigure, panel: Panel) -> None:
    """Draw all pictures onto a part of a sheet: sets in rows beside each other, or columns."""
    heading(part, panel.title, wrapped(panel.explanation))
    count = len(panel.labels)
    if panel.in_rows:
        boxes = axes_below(part, 1, count * len(panel.sets), left=0.1).reshape(-1, count)
        for box in boxes:
            for axes, label in zip(box, panel.labels, strict=True):
                axes.set_title(label, fontsize=SMALL, color=SOFT, loc="left", pad=4)
    else:
        boxes = axes_below(part, count, len(panel.sets)).T
        for axes, label in zip(boxes[0], panel.labels, strict=True):
            axes.set_ylabel(fill(label, 14), rotation=0, ha="right", va="center", fontsize=TEXT, color=INK)
    for box, pictures in zip(boxes, panel.sets, strict=True):
        pictures.draw(list(box))


def axes_below(part: SubFigure, rows: int, columns: int, *, left: float = 1.2, below: float = 0.1, gap: float = 0.06):
    """Axes in a grid under the heading of a part: an array of `rows` and `columns`. Margins in inches."""
    height = part.bbox.height / part.dpi
    # A constrained layout differs from one drawing to the next by rounding.
    margins = {"left": left / WIDTH, "right": 0.99, "top": 1 - 0.95 / height, "bottom": below / height}
    axes: Any = part.subplots(rows, columns, squeeze=False, gridspec_kw=margins | {"wspace": gap, "hspace": gap})
    return axes


def drawn_alone(pictures: Pictures) -> list[bytes]:
    """Each picture of a set as WebP, of ALONE_PX."""
    dpi = 140
    figures = [Figure(figsize=(ALONE_PX / dpi, ALONE_PX / dpi), dpi=dpi) for _ in pictures.alts]
    pictures.draw([figure.add_axes((0, 0, 1, 1)) for figure in figures])
    packed = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        packed.append(encoded(image, "WEBP", quality=88, method=4))
    return packed


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


def matches(shown: Shown) -> Panel:
    """Two tiles with both crops, and the cells that the two views share."""
    recipe, index = shown.recipe, shown.index
    network = next(iter(shown.networks.values()))
    with torch.no_grad():
        grid = network(torch.zeros(1, 3, recipe.views.size, recipe.views.size)).shape[2:]
    epochs = max(1, int(shown.rows[-1]["epoch"]))
    sets = []
    for number, tile in read_spread(index, 2, shown.run):
        mpp, name = float(index.mpp[number]), Path(index.name(number)).name
        pair = training_pair(tile, number, recipe, tuple(grid), mpp, epochs)
        alts = [
            f"Tile {name} with the outlines of crops 1 and 2",
            "View 1 with a few of its cells, numbered",
            "View 2: outlines show where the tissue of those cells lies; filled cells are those they match",
        ]
        sets.append(Pictures(name, alts, lambda axes, pair=pair: draw_pair(tuple(axes), pair)))
    return Panel(
        "Which cells show the same tissue",
        "Two crops of a tile, and their views as the network sees them. A cell of view 1 is matched with the "
        "cells of view 2 that share its tissue: the larger the share, the stronger the colour.",
        ["tile with both crops", "view 1", "view 2"],
        sets,
        in_rows=True,
    )


def features(shown: Shown) -> Panel:
    """Tiles, and the principal components of their cells before and after training."""
    views = shown.recipe.views
    names, tiles = shown.tiles(SHOWN)
    labels, rows = ["tile"], [[tile.permute(1, 2, 0).numpy() for tile in tiles]]
    for name, network in shown.networks.items():
        colours, share = principal_colours(cell_features(network, tiles, views.mean, views.std))
        rows.append(list((colours * 255).round().to(torch.uint8).numpy()))
        labels.append(f"{name} ({share:.0%} of variance)")

    def draw(axes: Sequence[Axes], images: Sequence[np.ndarray]) -> None:
        for place, (box, image) in enumerate(zip(axes, images, strict=True)):
            picture(box, image, smooth=place == 0)

    sets = [
        Pictures(
            name,
            [f"Tile {name}", *(f"Its cells by {before}: like colours, like features" for before in shown.networks)],
            lambda axes, images=images: draw(axes, images),
        )
        for name, *images in zip(names, *rows, strict=True)
    ]
    return Panel(
        "What the backbone tells apart",
        "The first three principal components of its cells as red, green and blue: cells of similar colour have "
        "similar features. Fitted for each row separately: compare colours along a row, not between rows.",
        labels,
        sets,
    )


def glands(shown: Shown, split: Split) -> Panel:
    """What a probe of the frozen cells calls gland, before and after training, on slides left out."""
    views = shown.recipe.views
    train, test = (resized(side.images, shown.px) for side in (split.train, split.test))
    scores = {
        name: nearest_neighbour_probe(
            network, train, split.train.masks, test, split.test.masks, mean=views.mean, std=views.std
        )
        for name, network in shown.networks.items()
    }
    memory = next(iter(scores.values())).memory

    def draw(axes: Sequence[Axes], number: int) -> None:
        image, mask = test[number].permute(1, 2, 0).numpy(), split.test.masks[number].numpy()
        for box, score in zip(axes, scores.values(), strict=True):
            draw_segmented(box, image, mask, score.predicted[number].numpy())

    sets = [
        Pictures(
            split.names[number],
            [f"{split.names[number]}: cells called gland by {name}, and the true outlines" for name in scores],
            lambda axes, number=number: draw(axes, number),
        )
        for number in spaced(range(len(test)), SHOWN)
    ]
    return Panel(
        "Does it know glands?",
        f"Nothing is trained here: each cell of {counted(len(test), 'tile')} of slides that pretraining never saw "
        f"takes the majority label of its 20 nearest among {memory:,} labelled cells. Green: called gland. "
        "Outlines: the truth. Dice is over all cells of these tiles.",
        [f"{name}: Dice {score.dice:.2f}" for name, score in scores.items()],
        sets,
    )
