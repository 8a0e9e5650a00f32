"""`colocate export`, `report` and `table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from colocate.base.errors import UserError
from colocate.base.text import say
from colocate.training.recipe import Library


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    to: Library = "timm",
) -> None:
    """Write a run's backbone for timm, Hugging Face, torchvision or detectron2.

    Args:
        run: The run folder.
        out: The file: .safetensors or .pth (timm, torchvision), .pkl (detectron2); a folder (huggingface).
        to: The library to export for.
    """
    from colocate.training.checkpoint import export as write_for

    say(f"{write_for(run, to, out)}")


def report(
    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")],
    out: Path | None = None,
    png: Path | None = None,
) -> None:
    """Write a page about a run: pictures, curves, warnings, next steps; for several runs, a table and their curves.

    Args:
        runs: A run folder, or several, of any methods.
        out: The page, one HTML file; None: RUN/report.html, or compare.html for several runs.
        png: Also write the page as a picture, to this file.
    """
    if not runs:
        raise UserError("give the folder of a run, or several to compare: colocate report RUN [RUN ...]")
    if len(runs) == 1:
        from colocate.pages.page import report as write_report

        say(f"{write_report(runs[0], out, png)}")
        return
    from colocate.pages.compare import compare

    page = out or Path("compare.html")
    say(compare(runs, page, png))
    say(f"\npage: {page}")


def table(
    results: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS ...")],
    against: str | None = None,
    by: Literal["cases", "images"] = "cases",
    out: Path | None = None,
) -> None:
    """Tabulate results of `colocate evaluate` in Markdown: means, intervals, differences from a reference.

    Args:
        results: Folders of results, or result.json files.
        against: The backbone that the others are compared with; None: random, or else the first.
        by: What is resampled for intervals: whole cases, if five or more are known, or single images.
        out: Folder for index.html, table.md, table.csv and table.png.
    """
    if not results:
        raise UserError("give folders of results that `colocate evaluate` wrote: colocate table RESULTS ...")
    from colocate.evaluation.table import collect, markdown, write

    tables = collect(results, against, by)
    text = markdown(tables)
    say(text)
    if out is not None:
        from colocate.pages.scores import write_scores

        write(tables, text + "\n", out)
        write_scores(tables, out)
        say(f"\nwritten: {out / 'index.html'}, and table.md, .csv and .png beside it")
