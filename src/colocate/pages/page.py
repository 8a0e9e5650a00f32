"""A run as one page: what was trained, warnings, matched cells, features before and after, curves, glands found."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from colocate.base.files import write_atomically
from colocate.pages import facts, panels, svg
from colocate.pages.curves import Chart, draw_chart, line
from colocate.pages.html import check_ending, embedded, write_page
from colocate.pages.sample import Shown, masks_beside, read_run
from colocate.pages.style import heading, png
from colocate.training.journal import loss_terms, read_rows

CURVES = {
    "Correspondence accuracy": {"correspondence": ("measured", "green")},
    "Effective rank of whole views": {"effective_rank": ("rank", "blue")},
    "Feature standard deviation": {"feature_std": ("std", "orange")},
}
"""Charts of the journal beside the loss: label and colour by column."""
ABOUT_CURVES = panels.Panel(
    "How training went",
    "Correspondence: how often a cell's most similar cell of the other view truly shares tissue with it; dotted: how "
    "often by chance. Thin: each row of the journal; thick: running means over a tenth of the rows. Numbers: means "
    "over the last tenth.",
    [],
    [],
)


def report(run: Path, out: Path | None = None, picture: Path | None = None) -> Path:
    """Write the page of a run as `out` (default RUN/report.html), and draw it as a PNG too; returns where the page is.

    The same run gives the same page: tiles are taken evenly spaced, and the network before training is built anew
    from the recipe's seed.

    Raises UserError: no run there, or one without a backbone yet, or its tiles have moved away.
    """
    run = Path(run)
    out = check_ending(run / "report.html" if out is None else Path(out))
    shown = read_run(run)
    split = masks_beside(shown.index)
    drawn = [panels.matches(shown), panels.features(shown), *([panels.glands(shown, split)] if split else [])]
    charts = charts_of(shown)
    write_page(
        out,
        "run.html",
        run=run,
        recipe=shown.recipe.name,
        heading=facts.title(shown),
        summary=facts.summary(shown),
        warnings=facts.warnings(shown),
        facts=facts.facts(shown),
        own_settings=facts.own_settings(shown.recipe),
        commands=facts.next_commands(shown),
        panels=[
            (panel, [(one, [embedded(image) for image in panels.drawn_alone(one)]) for one in panel.sets])
            for panel in drawn
        ],
        curves=ABOUT_CURVES,
        charts=charts,
        svg=svg,
    )
    if picture is not None:
        write_atomically(picture, png(_sheet(shown, drawn, charts)))
    return out


def charts_of(shown: Shown) -> list[Chart]:
    """The loss with its terms, the health of the features, and the probe where there was one."""
    recipe, rows = shown.recipe, shown.rows
    filling = recipe.method.filling(recipe.batch) / recipe.accumulate
    terms = zip(loss_terms(rows), cycle(("blue", "orange", "green")), strict=False)
    wanted = {"Loss": {"loss": ("total", "ink")} | {name: (name, colour) for name, colour in terms}} | CURVES
    charts = []
    for title, columns in wanted.items():
        lines = [line(rows, column, label, colour) for column, (label, colour) in columns.items()]
        shaded = filling if title == "Loss" and filling > 0.02 * rows[-1]["step"] else 0
        charts.append(Chart(title, "step", [one for one in lines if len(one.x)], shaded))
    if (shown.run / "probes.csv").is_file():
        asked = line(read_rows(shown.run / "probes.csv"), "dice", "Dice", "purple")
        charts.append(Chart("Probe of labelled training images", "step", [asked]))
    return [chart for chart in charts if any(len(one.x) for one in chart.lines)]


def _sheet(shown: Shown, drawn: list[panels.Panel], charts: list[Chart]) -> Figure:
    """The same panels and charts on one sheet."""
    pictures, curves, last = [3.1, 6.3], [2.9], [4.5] * (len(drawn) - 2)
    heights = [0.6, *pictures, *curves, *last]
    figure = Figure(figsize=(panels.WIDTH, sum(heights)), facecolor="white")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    heading(parts[0], facts.title(shown), "  ·  ".join(facts.summary(shown)))
    for part, panel in zip([*parts[1:3], *parts[4:]], drawn, strict=True):
        panels.draw_panel(part, panel)
    heading(parts[3], ABOUT_CURVES.title, panels.wrapped(ABOUT_CURVES.explanation))
    boxes = panels.axes_below(parts[3], 1, len(charts), left=0.5, below=0.5, gap=0.25)[0]
    for axes, chart in zip(boxes, charts, strict=True):
        draw_chart(axes, chart)
    return figure
