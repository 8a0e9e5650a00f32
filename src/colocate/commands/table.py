"""`colocate table`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from ..evaluate import table as results_table
from ..evaluate.markdown import markdown
from ..figures.scores import scores as draw_scores


def table(
    results: Positional[list[Path]],
    against: str | None = None,
    by: results_table.Drawn = "cases",
    out: Path | None = None,
) -> None:
    """Results of `colocate evaluate` as tables in Markdown: means, intervals, differences from a reference.

    Args:
        results: Folders of results, or result.json files.
        against: The backbone that others are compared with (default: random, else the first).
        by: What intervals draw anew: whole cases, where five or more are known, or images one by one.
        out: Folder for table.md, table.csv, table.json and table.png.
    """
    tables = results_table.collect(results, against, by)
    text = markdown(tables) + "\n"
    print(text, end="")
    if out is not None:
        results_table.write(tables, text, out)
        draw_scores(tables, out / "table.png")
        print(f"\nwritten: {out}/table.md, .csv, .json and .png")
