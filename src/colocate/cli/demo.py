"""`colocate demo`: made-up tissue, a pretraining, and one page of it, in three minutes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from colocate.base.errors import UserError
from colocate.base.text import say
from colocate.training.journal import read_journal
from colocate.training.recipe import Recipe, read_recipe
from colocate.training.recipes import colocate_demo

OURS = {"phantom", "run", "report.html", "report.png"}  # the last: of earlier demos
TRIAL = 8  # steps, the first half of which are slower
DRAWING = 40  # steps that take as long as the page does, about
LEAST, MOST = 30, 500  # steps: fewer show nothing, more only learn the tiles by heart


def make_demo(
    out: Path,
    recipe: Recipe | None = None,
    *,
    seconds: float = 170,
    tiles: int = 320,
    held_out: int = 4,
    size: int = 128,
    mpp: float = 1.0,
) -> Path:
    """Write phantom tiles, pretrain on them, write the page; returns where it is: OUT/report.html.

    Every `held_out`-th slide is kept from pretraining, to ask the features about glands they never saw. A recipe that
    does not say its steps takes as many as fit into `seconds`. A demo that was stopped goes on where it was; a
    finished one writes its page anew.

    Raises UserError: `out` holds other files, or a demo of another recipe.
    """
    from colocate.data.phantom import write_phantom
    from colocate.pages.page import report
    from colocate.training.loop import pretrain

    began = time.monotonic()
    found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if found - OURS or out.is_file():
        strange = ", ".join(sorted(found - OURS)[:3]) or "it is a file"
        raise UserError(f"{out} is no folder of a demo ({strange}): choose another --out")
    phantom = out / "phantom"
    if not (phantom / "tiles.csv").is_file():
        write_phantom(phantom, tiles, size=size, mpp=mpp)
    slides = sorted(folder.name for folder in (phantom / "images").glob("slide*"))
    tested = slides[held_out - 1 :: held_out]
    left_out = (f"source={','.join(tested)}",) if tested else ()
    data, run = str(phantom / "tiles.csv"), str(out / "run")
    recipe = replace(recipe or colocate_demo(), data=data, out=run, hold_out=left_out)
    if recipe.steps is None:
        a_step = recipe.batch * recipe.accumulate
        stored = out / "run" / "recipe.json"
        left = seconds - (time.monotonic() - began)
        steps = read_recipe(stored).steps if stored.is_file() else steps_that_fit(left, pairs_per_s(recipe), a_step)
        recipe = replace(recipe, steps=steps)
    return report(pretrain(recipe, resume=True), out / "report.html")


def pairs_per_s(recipe: Recipe) -> float:
    """How fast a recipe trains here, by a few steps of it."""
    from colocate.training.loop import pretrain

    say(f"first {TRIAL} steps, to measure the speed of this machine:")
    machine = replace(recipe.machine, log_every=TRIAL // 2, journals=())
    recipe = replace(recipe, steps=TRIAL, machine=machine, optim=replace(recipe.optim, warmup_epochs=0))
    with tempfile.TemporaryDirectory() as folder:
        return read_journal(pretrain(replace(recipe, out=folder)))[-1]["pairs_per_s"]


def steps_that_fit(seconds: float, pairs_per_s: float, batch: int) -> int:
    """Steps after which there is still time to draw the page; not fewer than show anything.

    >>> steps_that_fit(100, 80, 32), steps_that_fit(100, 4, 32), steps_that_fit(100, 4000, 32)
    (210, 30, 500)
    """
    return min(MOST, max(LEAST, int(seconds * pairs_per_s / batch) - DRAWING))


def demo(out: Path = Path("demo")) -> None:
    """Pretrain on made-up tissue and write a page about it: three minutes on two cores.

    It measures the speed of this machine, and takes as many steps as fit.

    Args:
        out: Folder for the tiles, the run and the page; a demo that was stopped continues in it.
    """
    say(f"done: look at {make_demo(out)}")
