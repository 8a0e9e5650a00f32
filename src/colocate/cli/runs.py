"""`colocate inspect`, `export`, `report` and `table`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from colocate.base.errors import UserError
from colocate.data.inspect import inspect as look
from colocate.data.inspect import show
from colocate.evaluate import table as results_table
from colocate.evaluate.table import markdown
from colocate.pretrain.checkpoint import Library
from colocate.pretrain.checkpoint import export as write_for
from colocate.report.compare import compare as lay_over
from colocate.report.page import report as draw
from colocate.report.scores import scores as draw_scores


def inspect(
    data: Positional[str],
    root: Path | None = None,
    mpp: float | None = None,
    sample: int | None = None,
    out: Path = Path("contact-sheet.png"),
) -> None:
    """Look at data before training: counts, sizes, colours, duplicates, unreadable files, a contact sheet.

    Args:
        data: A folder, list, table, tar shard, folder of shards, or index of tiles.
        root: Folder that listed paths are relative to.
        mpp: Micrometres per pixel of tiles that do not say.
        sample: Open only so many tiles, evenly spaced (default: all).
        out: The contact sheet.
    """
    show(look(data, root=root, mpp=mpp, sample=sample, out=out))
    print(f"contact sheet: {out}")


def export(run: Positional[Path], out: Positional[Path], to: Library = "timm") -> None:
    """Write a run's backbone for timm, torchvision or detectron2.

    Args:
        run: The run folder.
        out: The file: .safetensors or .pth (timm, torchvision), .pkl (detectron2).
        to: The library.
    """
    print(write_for(run, to, out))


def report(runs: Positional[list[Path]], out: Path | None = None) -> None:
    """Draw a run as one page of pictures; of several runs print a table and draw their curves on one page.

    Args:
        runs: The run folder, or several of any methods.
        out: The picture (default: RUN/report.png; of several compare.png).
    """
    if not runs:
        raise UserError("give the folder of a run, or several to compare: colocate report RUN [RUN ...]")
    if len(runs) == 1:
        print(draw(runs[0], out))
        return
    picture = out or Path("compare.png")
    print(lay_over(runs, picture))
    print(f"\ncurves: {picture}")


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
        out: Folder for table.md, table.csv and table.png.
    """
    tables = results_table.collect(results, against, by)
    text = markdown(tables) + "\n"
    print(text, end="")
    if out is not None:
        results_table.write(tables, text, out)
        draw_scores(tables, out / "table.png")
        print(f"\nwritten: {out}/table.md, .csv and .png")
