"""Several runs laid over each other, on what means the same in every method: a table and one picture page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from ..files import write_atomically
from ..text import escaped, grid
from .curves import CHANCE, Dashes, draw_line, fit, mean, name_ends, name_level
from .facts import Run, read_runs, same_and_different
from .style import COLOURS, INK, SMALL, SOFT, TEXT, TITLE, Page, columns, plot

WIDTH, MARGIN, LINE = 12.0, 0.5, 0.24  # inches
INNER = WIDTH - 2 * MARGIN
CHART, TOP, ROW = 2.05, 0.72, 3.5  # inches: a chart's height, its heading above, the whole
LETTERS = 13.5  # an inch, at least, in the size of text
STYLES: tuple[Dashes, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # when colours run out
CHARTS = (
    ("correspondence", "Correspondence accuracy", "How often a cell's most similar cell shows the same tissue."),
    ("effective_rank", "Effective rank", "In how many directions tiles differ. 1: collapsed."),
    ("feature_std", "Feature standard deviation", "Of projected whole views. About 1: spread out, 0: collapsed."),
    ("within_tile", "Within-tile share of variance", "Of the cells' features. 0: the cells of a tile are all alike."),
)


def compare(runs: Sequence[Path], out: Path = Path("compare.png")) -> str:
    """Draw the runs' page as `out`; returns in Markdown what they share, where they differ, and a row a run.

    Raises:
        UserError: fewer than two runs, one given twice, no run there, or one that has logged nothing.
    """
    compared = read_runs(runs)
    packed = draw(compared).png()
    write_atomically(Path(out), lambda file: file.write(packed))
    return markdown(compared)


def markdown(runs: Sequence[Run]) -> str:
    """What the runs share, where they differ, and their table."""
    same, different = same_and_different(runs)
    note = (
        "Values are means over the last tenth of each journal's rows. Correspondence stands with its chance level. "
        "Losses of different methods are on different scales."
    )
    parts = [f"The same in all: {same}" if same else "", "\n".join(f"- {line}" for line in different), note]
    return "\n\n".join([*filter(None, parts), table(runs)])


def table(runs: Sequence[Run]) -> str:
    """A row a run, in Markdown; a cell is empty where the method has no such term."""
    cells = [_cells(run) for run in runs]
    return grid([list(cells[0]), *([escaped(text) for text in row.values()] for row in cells)], left=2)


def _cells(run: Run) -> dict[str, str]:
    def number(column: str, form: str) -> str:
        value = run.late(column)
        return f"{value:{form}}" if math.isfinite(value) else ""

    def share(column: str) -> str:
        chance = number(f"{column}_chance", ".3f")
        return number(column, ".3f") + (f" ({chance})" if chance else "")

    return {
        "run": run.name,
        "recipe": run.recipe.name,
        "steps": run.steps,
        **{name: number(name, "#.3g") for name in ("loss", "whole", "cells", "concepts")},
        "correspondence": share("correspondence"),
        "displaced": share("displaced"),
        "effective rank": number("effective_rank", ".1f"),
        "feature std": number("feature_std", ".3f"),
        "within tile": number("within_tile", ".3f"),
        "pairs/s": number("pairs_per_s", ".1f"),
        "waiting": number("waiting", ".1%"),
    }


def draw(runs: Sequence[Run]) -> Page:
    """The page: what the runs share, where they differ, which line is whose, and four charts."""
    same, different = same_and_different(runs)
    shared = _wrapped(same or "Nothing is the same in all runs.")
    others = [part for line in different for part in _wrapped(line)]
    labels = [_label(run) for run in runs]
    each = max(len(label) for label in labels) / LETTERS + 0.9
    across = max(1, min(len(runs), int(INNER / each)))
    deep = -(-len(runs) // across)
    key_top = 0.95 + LINE * (len(shared) + len(others)) + 0.1 * bool(others)
    charts = key_top + LINE * deep + 0.4
    page = Page(WIDTH, charts + 2 * ROW + 0.25)

    page.text(MARGIN, 0.4, _title(runs), TITLE, fontweight="bold")
    for number, line in enumerate(shared + others):
        below = number >= len(shared)
        page.text(MARGIN, 0.8 + LINE * number + 0.06 * below, line, color=INK if below else SOFT)
    looks = [(COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]) for n in range(len(runs))]
    key = page.axes(MARGIN, key_top, INNER, LINE * deep)
    key.set(xlim=(0, INNER), ylim=(deep, 0))
    key.set_axis_off()
    for number, (label, (colour, dashes)) in enumerate(zip(labels, looks, strict=True)):
        x, y = number % across * each, number // across + 0.5
        key.plot([x, x + 0.4], [y, y], color=colour, ls=dashes, lw=2.4, solid_capstyle="butt")
        key.text(x + 0.5, y, label, fontsize=TEXT, color=INK, va="center_baseline")
    for number, (column, title, explanation) in enumerate(CHARTS):
        left, width = list(columns(MARGIN + 0.4, INNER - 0.8, 2, 1.0))[number % 2]
        top = charts + number // 2 * ROW
        page.heading(left - 0.4, top, title, explanation)
        _chart(page.axes(left, top + TOP, width, CHART), runs, column, looks)
    numbers = (
        " The numbers at the right are means over the last tenth of the rows." if len(runs) <= len(COLOURS) else ""
    )
    foot = f"Thin: each row of the journal. Thick: its running mean over a tenth of the run.{numbers}"
    page.text(MARGIN, charts + 2 * ROW - 0.2, foot, SMALL, color=SOFT)
    return page


def _wrapped(line: str) -> list[str]:
    return wrap(line, int(INNER * LETTERS), subsequent_indent="    ")


def _label(run: Run) -> str:
    """The run's name, with its recipe's where that says more; of a very long one the end."""
    label = run.name if run.recipe.name in ("", Path(run.name).name) else f"{run.name} ({run.recipe.name})"
    most = int((INNER - 0.9) * LETTERS)
    return label if len(label) <= most else f"...{label[3 - most :]}"


def _title(runs: Sequence[Run]) -> str:
    """Recipes and data, as far as a line has room for them."""
    recipes = list(dict.fromkeys(run.recipe.name or "own" for run in runs))
    data = f" on {runs[0].data}" if len({run.data for run in runs}) == 1 else ""
    count = f": {len(runs)} runs" if len(recipes) < len(runs) else ""
    whole = f"{', '.join(recipes)}{count}{data}"
    return next((words for words in (whole, f"{len(runs)} runs{data}") if len(words) <= 75), f"{len(runs)} runs")


def _chart(axes: Axes, runs: Sequence[Run], column: str, looks: list[tuple[str, Dashes]]) -> None:
    """One column's curves, with its late means beside them."""
    pairs = [run.pairs if len({run.pairs for run in runs}) > 1 else 1 for run in runs]
    plot(axes, "", "step" if set(pairs) == {1} else "pairs seen")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for run, units, (colour, dashes) in zip(runs, pairs, looks, strict=True):
        draw_line(axes, run.rows, column, colour, dashes=dashes, faint=0.25, pairs=units, full=True)
    fit(axes, max(run.rows[-1]["step"] * units for run, units in zip(runs, pairs, strict=True)))
    if not axes.lines:
        axes.text(0.5, 0.5, "not in these journals", transform=axes.transAxes, color=SOFT, fontsize=SMALL, ha="center")
        axes.set_yticks([])
        return
    if column == "correspondence":
        _chance(axes, runs, [colour for colour, _ in looks])
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    low, high = axes.dataLim.intervaly
    axes.set_ylim(0 if low < high / 2 else high / 2, None)
    if len(runs) <= len(COLOURS):
        late = [run.late(column) for run in runs]
        name_ends(axes, [(end, f"{end:#.3g}", colour) for end, (colour, _) in zip(late, looks, strict=True)])


def _chance(axes: Axes, runs: Sequence[Run], colours: list[str]) -> None:
    """The level of chance: one line where it is the same for all, else one of each run's colour."""
    levels = {run.name: mean(run.rows, "correspondence_chance") for run in runs}
    known = [level for level in levels.values() if math.isfinite(level)]
    if not known:
        return
    if max(known) - min(known) < 0.01:
        level = sum(known) / len(known)
        axes.axhline(level, color=SOFT, lw=1.1, ls=CHANCE)
        name_level(axes, level, f"chance {level:.2f}")
        return
    for level, colour in zip(levels.values(), colours, strict=True):
        if math.isfinite(level):
            axes.axhline(level, color=colour, lw=1.1, ls=CHANCE)
    name_level(axes, min(known), "chance (dashed)")
