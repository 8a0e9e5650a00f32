"""One slide after another: what is done is skipped, what fails is set aside, and the others go on.

Shared by `colocate features` and `colocate predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, final

from ..errors import TileError, UserError
from ..files import check_writable
from ..text import counted
from ..tiling.listing import Listed
from ..tiling.meter import Meter
from ..tiling.quarantine import Quarantine


@final
class Tally(NamedTuple):
    """How many slides were worked on, were there before, and failed."""

    worked: int
    there: int
    failed: int

    def sentence(self, out: Path) -> str:
        """What a command says at its end.

        >>> Tally(3, 0, 1).sentence(Path("out"))
        'done: 3 slides in out, 1 failed: see out/failed.csv'
        >>> Tally(0, 2, 0).sentence(Path("out"))
        'done: 0 slides in out, 2 were there before'
        """
        there = f", {self.there} {'was' if self.there == 1 else 'were'} there before" if self.there else ""
        failed = f", {self.failed} failed: see {out}/failed.csv" if self.failed else ""
        return f"done: {counted(self.worked, 'slide')} in {out}{there}{failed}"


def for_each_slide(
    slides: Sequence[Listed],
    done: Callable[[Listed], bool],
    work: Callable[[Listed, Meter], None],
    quarantine: Quarantine,
    unit: str,
) -> Tally:
    """Work on every slide that is not done; `work` tells the meter of its progress and leaves all of a slide or none.

    All are asked whether they are done before the first is worked on: what `done` refuses is refused at once. A slide
    on which `work` raises TileError is quarantined, and tried again by the next call; other errors end the loop.

    Raises:
        UserError: every slide failed, or the quarantine's folder cannot be written; and what `done` and `work` raise.
    """
    wanted = [slide for slide in slides if not done(slide)]
    failed = 0
    for name in {slide.name for slide in slides} - {slide.name for slide in wanted}:
        quarantine.remove(name)
    if wanted:
        check_writable(quarantine.path.parent)
    meter = Meter(len(wanted), unit)
    with meter.bar:
        for slide in wanted:
            try:
                work(slide, meter)
            except TileError as error:
                quarantine.add(slide.name, slide.path, str(error))
                meter.fail(slide.name, str(error))
                failed += 1
            else:
                quarantine.remove(slide.name)
                meter.end(slide.name)
    if failed and failed == len(slides):
        raise UserError(f"none of {counted(failed, 'slide')} went well: {quarantine.path} says why")
    return Tally(len(wanted) - failed, len(slides) - len(wanted), failed)
