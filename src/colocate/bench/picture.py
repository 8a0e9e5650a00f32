"""The picture of a bench: where a step's time goes, and pairs a second against the batch."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ..figures.style import BLUE, GREEN, INK, ORANGE, RULE, SMALL, SOFT, TEXT, VERMILION, Page, bare, plot
from ..files import write_atomically
from .report import NAMES, Report, advice, short, title

WIDTH, HEIGHT, MARGIN = 10.0, 6.4, 0.5  # inches
COLOURS = {
    "waiting": VERMILION,
    "views": GREEN,
    "network": BLUE,
    "losses": ORANGE,
    "optimizer": "#cc79a7",
    "rest": RULE,
}


def draw(report: Report, out: Path) -> None:
    """Write the picture as a PNG."""
    packed = page(report).png()
    write_atomically(out, lambda file: file.write(packed))


def page(report: Report) -> Page:
    """The page: the bar above, the curve and what is recommended below."""
    page = Page(WIDTH, HEIGHT)
    page.text(MARGIN, 0.35, fill(title(report), 110), 11.5, fontweight="bold")
    page.text(MARGIN, 0.85, _summary(report), TEXT, color=SOFT)
    _bar(page.axes(MARGIN, 1.4, WIDTH - 2 * MARGIN, 0.5), report)
    _legend(page, report, 2.05)
    _rates(page.axes(MARGIN + 0.35, 3.55, 4.4, 2.3), report)
    page.text(5.65, 3.35, "For speed", 11.5, fontweight="bold")
    page.text(5.65, 3.65, "\n\n".join(fill(line, 58) for line in advice(report)))
    return page


def _summary(report: Report) -> str:
    reached = f"{short(report.step_pairs_per_s)} of {short(report.ceiling_pairs_per_s)} pairs/s of the network alone"
    memory = f"{report.peak_memory_bytes / 1e9:.2f} GB at most"
    return f"A step of {short(report.step_ms)} ms: {reached} ({report.ceiling_share:.0%}); {memory}; {report.date}"


def _bar(axes: Axes, report: Report) -> None:
    bare(axes)
    axes.set_xlim(0, 1)
    left = 0.0
    for part, name in NAMES.items():
        share = report.step_share[part]
        axes.barh(0, share, left=left, color=COLOURS[part], edgecolor="white", linewidth=0.8, height=1, label=name)
        if share > 0.05:
            colour = INK if part in ("rest", "losses") else "white"
            axes.text(left + share / 2, 0, f"{share:.0%}", ha="center", va="center", fontsize=TEXT, color=colour)
        left += share
    axes.set_ylim(-0.5, 0.5)


def _legend(page: Page, report: Report, top: float) -> None:
    """The parts by name, three in a row, with their milliseconds in the step and alone."""
    wide = (WIDTH - 2 * MARGIN) / 3
    for place, (part, name) in enumerate(NAMES.items()):
        left, high = MARGIN + place % 3 * wide, top + place // 3 * 0.5
        swatch = page.axes(left, high + 0.03, 0.14, 0.14)
        bare(swatch)
        swatch.set_facecolor(COLOURS[part])
        took = f"{short(report.step_share[part] * report.step_ms)} ms"
        alone = report.alone_ms.get(part)
        own = "" if alone is None or part == "waiting" else f"  ({short(alone)} alone)"
        page.text(left + 0.22, high, f"{name}\n{took}{own}")


def _rates(axes: Axes, report: Report) -> None:
    plot(axes, "Pairs a second by batch, tiles decoded", "batch")
    batches, rates = list(report.batch_pairs_per_s), list(report.batch_pairs_per_s.values())
    axes.plot(batches, rates, "o-", color=BLUE, lw=1.8, ms=5)
    chosen = report.recommended_batch
    axes.plot([chosen], [report.batch_pairs_per_s[chosen]], "o", ms=11, mfc="none", mec=VERMILION, mew=1.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1)
    axes.set_ylim(0, 1.15 * max(rates))
    for batch, rate in zip(batches, rates, strict=True):
        axes.annotate(short(rate), (batch, rate), xytext=(0, 9), textcoords="offset points", ha="center",
                      fontsize=SMALL, color=SOFT)  # fmt: skip
