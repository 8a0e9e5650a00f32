"""Work on one slide after another: skip what is done, set aside what fails, and go on.

Shared by `colocate features` and `colocate predict`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, final

from colocate.base.errors import TileError, UserError
from colocate.base.files import check_writable, claimed, remove_unfinished
from colocate.base.tables import as_text, read_table, write_csv
from colocate.base.text import Terminal, counted
from colocate.slides.listing import Listed


@final
class Meter(Terminal):
    """Progress over slides, and over the pieces (`unit`: tile, window) of the one in work; a line a slide in a log."""

    def __init__(self, slides: int, unit: str) -> None:
        super().__init__(after="{task.fields[pace]}")
        self.unit = unit
        self.slides = self.bar.add_task("slides", total=slides, pace="")
        self.of_slide = self.bar.add_task(f"{unit}s", visible=False, pace="")
        self.done = self.before = 0
        self.began = time.perf_counter()

    def begin(self, pieces: int) -> None:
        """Show a bar for the pieces of one slide; optional, and only for slides worked on one at a time."""
        self.bar.reset(self.of_slide, total=pieces, visible=True)

    def advance(self, pieces: int) -> None:
        """Count finished pieces."""
        self.done += pieces
        self.bar.advance(self.of_slide, pieces)
        self.bar.update(self.slides, pace=self.pace)

    def end(self, name: str, failure: str = "") -> None:
        """Count a slide as done, with the pieces since the last one, or as left out because of a failure."""
        if failure:
            self.say(f"note: {name} is left out: {failure}")
        elif not self.live:
            self.say(f"{name}: {counted(self.done - self.before, self.unit)}, {self.pace} so far")
        self.before = self.done
        self.bar.advance(self.slides)

    @property
    def pace(self) -> str:
        """Pieces per second over all slides so far."""
        return f"{self.done / max(time.perf_counter() - self.began, 1e-9):,.1f} {self.unit}s/s"


FAILED = "failed.csv"


@final
class Quarantine:
    """The failed slides, kept in a CSV (slide, path, reason) that exists only while there are any.

    Several processes may add to it and remove from it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def failed(self) -> dict[str, tuple[str, str]]:
        """Path and reason of each slide, by name."""
        if not self.path.is_file():
            return {}
        try:
            return {row["slide"]: (row["path"], row["reason"]) for row in as_text(read_table(self.path))}
        except KeyError:
            raise UserError(f"{self.path} is there and is not colocate's: choose another --out") from None

    def set(self, failed: dict[str, tuple[str, str]]) -> None:
        """Replace all entries."""
        if failed:
            write_csv(self.path, ("slide", "path", "reason"), [(name, *failed[name]) for name in sorted(failed)])
        else:
            self.path.unlink(missing_ok=True)

    def add(self, name: str, path: Path, reason: str) -> None:
        with self._mine():
            self.set(self.failed | {name: (str(path), reason)})

    def remove(self, names: Set[str]) -> None:
        """Remove slides that have succeeded since."""
        if not names.isdisjoint(self.failed):
            with self._mine():
                self.set({other: said for other, said in self.failed.items() if other not in names})

    def _mine(self) -> AbstractContextManager[bool]:
        return claimed(self.path.with_name(f".{self.path.name}.lock"), wait=True)


@final
class Tally(NamedTuple):
    """Numbers of slides worked on, done before, and failed."""

    worked: int
    there: int
    failed: int

    def sentence(self, out: Path) -> str:
        """The summary that a command prints at its end.

        >>> Tally(3, 0, 1).sentence(Path("out"))
        'done: 3 slides in out, 1 failed: see out/failed.csv'
        >>> Tally(0, 2, 0).sentence(Path("out"))
        'done: 0 slides in out, 2 were there before'
        """
        there = f", {self.there} {'was' if self.there == 1 else 'were'} there before" if self.there else ""
        failed = f", {self.failed} failed: see {out / FAILED}" if self.failed else ""
        return f"done: {counted(self.worked, 'slide')} in {out}{there}{failed}"


def for_each_slide(
    slides: Sequence[Listed],
    done: Callable[[Listed], bool],
    work: Callable[[Listed, Meter], None],
    folder: Path,
    unit: str,
) -> Tally:
    """Work on every slide that is not done; `work` reports progress to the meter and writes all of a slide or nothing.

    `done` is called for all slides first, so that its refusals come before any work. A slide on which `work` raises
    TileError, or by whose name no file can be called, is listed in FOLDER/failed.csv and tried again by the next call;
    other errors end the loop. Several processes share the slides: one that another is at work on comes last, and is
    then there or free.

    Raises UserError: every slide failed, or the folder cannot be written; and what `done` and `work` raise.
    """
    quarantine = Quarantine(folder / FAILED)
    misnamed = {slide.name: reason for slide in slides if (reason := slide.misnamed(folder))}
    wanted = [slide for slide in slides if slide.name in misnamed or not done(slide)]
    quarantine.remove({slide.name for slide in slides} - {slide.name for slide in wanted})
    if wanted:
        check_writable(folder)
        remove_unfinished(folder)
    meter = Meter(len(wanted), unit)
    worked = failed = 0
    waits = False

    def fail(slide: Listed, reason: str) -> None:
        nonlocal failed
        quarantine.add(slide.name, slide.path, reason)
        meter.end(slide.name, reason)
        failed += 1

    with meter:
        while wanted:
            elsewhere = []
            for slide in wanted:
                if slide.name in misnamed:
                    fail(slide, misnamed[slide.name])
                    continue
                with claimed(slide.lock(folder), waits) as mine:
                    if not mine:
                        elsewhere.append(slide)
                        continue
                    try:
                        if not done(slide):
                            work(slide, meter)
                            worked += 1
                    except TileError as error:
                        fail(slide, str(error))
                    else:
                        quarantine.remove({slide.name})
                        meter.end(slide.name)
            if elsewhere:
                meter.say(f"waiting for {counted(len(elsewhere), 'slide')} that another process is at work on")
            wanted, waits = elsewhere, True
    remove_unfinished(folder)
    if failed and failed == len(slides):
        raise UserError(f"none of {counted(failed, 'slide')} went well: {quarantine.path} says why")
    return Tally(worked, len(slides) - worked - failed, failed)
