"""`colocate export` and `report`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from colocate.base.errors import UserError
from colocate.base.text import say
from colocate.training.checkpoint import Library
from colocate.training.checkpoint import export as write_for


def export(run: Positional[Path], out: Positional[Path], to: Library = "timm") -> None:
    """Write a run's backbone for timm, Hugging Face, torchvision or detectron2.

    Args:
        run: The run folder.
        out: The file: .safetensors or .pth (timm, torchvision), .pkl (detectron2); a folder (huggingface).
        to: The library.
    """
    say(f"{write_for(run, to, out)}")


def report(runs: Positional[list[Path]], out: Path | None = None) -> None:
    """Draw a run as one page of pictures; of several runs print a table and draw their curves on one page.

    Args:
        runs: The run folder, or several of any methods.
        out: The picture (default: RUN/report.png; of several compare.png).
    """
    if not runs:
        raise UserError("give the folder of a run, or several to compare: colocate report RUN [RUN ...]")
    if len(runs) == 1:
        from colocate.pages.page import report as draw

        say(f"{draw(runs[0], out)}")
        return
    from colocate.pages.compare import compare

    picture = out or Path("compare.png")
    say(compare(runs, picture))
    say(f"\ncurves: {picture}")
