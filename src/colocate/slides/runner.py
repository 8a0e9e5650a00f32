"""One slide after another: what is done is skipped, what fails is set aside, and the others go on.

Shared by `colocate features` and `colocate predict`.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from colocate.base.errors import TileError, UserError
from colocate.base.files import check_writable, write_atomically
from colocate.base.text import counted
from colocate.slides.listing import Listed


@final
class Meter:
    """Progress over slides, and over the pieces (`unit`: tile, window) of the one in work; a line a slide in a log."""

    def __init__(self, slides: int, unit: str) -> None:
        self.unit = unit
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.slides = self.bar.add_task("slides", total=slides, pace="")
        self.of_slide = self.bar.add_task(f"{unit}s", visible=False, pace="")
        self.done = self.before = 0
        self.began = time.perf_counter()

    def begin(self, pieces: int) -> None:
        """A slide of so many pieces, while no other is in work; without it only the bar of slides is shown."""
        self.bar.reset(self.of_slide, total=pieces, visible=True)

    def advance(self, pieces: int) -> None:
        """So many more are done."""
        self.done += pieces
        self.bar.advance(self.of_slide, pieces)
        self.bar.update(self.slides, pace=self.pace)

    def end(self, name: str) -> None:
        """A slide is done: all pieces since the last one were its own."""
        if self.bar.disable:
            self.say(f"{name}: {counted(self.done - self.before, self.unit)}, {self.pace} so far")
        self._next()

    def fail(self, name: str, reason: str) -> None:
        """A slide is left out."""
        self.say(f"note: {name} is left out: {reason}")
        self._next()

    def say(self, sentence: str) -> None:
        """One line that stays."""
        self.console.print(sentence, soft_wrap=True, markup=False)

    @property
    def pace(self) -> str:
        """Of all slides up to now."""
        return f"{self.done / max(time.perf_counter() - self.began, 1e-9):,.1f} {self.unit}s/s"

    def _next(self) -> None:
        self.before = self.done
        self.bar.advance(self.slides)


COLUMNS = ("slide", "path", "reason")


@final
class Quarantine:
    """A CSV (slide, path, reason) that is there only while a slide is in it; written whole at every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: dict[str, tuple[str, str]] = {}
        """Path and reason of each slide, by name."""
        if path.is_file():
            with path.open(newline="") as file:
                self.failed = {row["slide"]: (row["path"], row["reason"]) for row in csv.DictReader(file)}

    def add(self, name: str, path: Path, reason: str) -> None:
        self.failed[name] = (str(path), reason)
        self._write()

    def remove(self, name: str) -> None:
        """A slide that went well after all."""
        if self.failed.pop(name, None):
            self._write()

    def set(self, failed: dict[str, tuple[str, str]]) -> None:
        """Path and reason of all that are in it, by name."""
        self.failed = failed
        self._write()

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((name, *self.failed[name]) for name in sorted(self.failed))
        if self.failed:
            write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))
        else:
            self.path.unlink(missing_ok=True)


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
