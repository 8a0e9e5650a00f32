"""The whole of colocate in two minutes: made-up tissue, a pretraining, and one page of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .data.phantom import write_phantom
from .errors import UserError
from .figures import report
from .recipe import Recipe
from .recipes import plm_demo
from .train import pretrain

OURS = {"phantom", "run", "report.png"}


def demo(
    out: Path, recipe: Recipe | None = None, *, tiles: int = 320, held_out: int = 4, size: int = 128, mpp: float = 1.0
) -> Path:
    """Write phantom tiles, pretrain on them, draw the page; returns where it is: OUT/report.png.

    Every `held_out`-th slide is kept from pretraining, to ask the features about glands they never saw. A demo that
    was stopped goes on where it was; a finished one draws its page anew.

    Raises:
        UserError: `out` holds other files, or a demo of another recipe.
    """
    found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if found - OURS or out.is_file():
        strange = ", ".join(sorted(found - OURS)[:3]) or "it is a file"
        raise UserError(f"{out} is no folder of a demo ({strange}): choose another --out")
    phantom = out / "phantom"
    if not (phantom / "pretrain.csv").is_file():
        write_phantom(phantom, tiles, size=size, mpp=mpp)
        _leave_out(phantom, held_out)
    recipe = recipe or plm_demo()

    run = pretrain(replace(recipe, data=str(phantom / "pretrain.csv"), out=str(out / "run")), resume=True)
    return report(run, out / "report.png")


def _leave_out(phantom: Path, every: int) -> None:
    """Write pretrain.csv: tiles.csv without each `every`-th slide."""
    header, *rows = (phantom / "tiles.csv").read_text().splitlines()
    slides = list(dict.fromkeys(row.split(",")[1] for row in rows))
    kept = set(slides) - set(slides[every - 1 :: every])
    lines = [header, *(row for row in rows if row.split(",")[1] in kept)]
    (phantom / "pretrain.csv").write_text("\n".join(lines) + "\n")
