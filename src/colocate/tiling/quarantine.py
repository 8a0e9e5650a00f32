"""Slides that could not be worked on: kept in a table with the reason, while the others go on."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import final

from ..files import write_atomically

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
