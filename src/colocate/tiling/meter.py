"""How far the work on slides has come, and at what pace."""

from __future__ import annotations

import time
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..text import counted


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
