"""`colocate demo`."""

from __future__ import annotations

from pathlib import Path

def demo(out: Path = Path("demo")) -> None:
    """Pretrain on made-up tissue and draw a page of pictures: three minutes on two cores.

    It measures how fast it is here, and takes as many steps as fit.

    Args:
        out: Folder for the tiles, the run and the page; a demo that was stopped goes on in it.
    """
    print(f"done: look at {make_demo(out)}")
