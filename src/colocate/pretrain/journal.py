"""What a run writes while it goes: journal.csv, the progress on screen, and other journals where asked for."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, final

from colocate.base.errors import UserError
from colocate.base.text import Terminal
from colocate.data.index import Index

Item = TypeVar("Item")
COLUMNS: tuple[str, ...] = (
    "step",
    "epoch",
    "lr",
    "loss",
    "whole",
    "cells",
    "concepts",
    "overlap",
    "grad_norm",
    "feature_std",
    "effective_rank",
    "within_tile",
    "correspondence",
    "correspondence_chance",
    "displaced",
    "displaced_chance",
    "pairs_per_s",
    "waiting",
)


@final
class Journal:
    """A table in a file (RUN/journal.csv), a row every few steps; a resumed run drops those after its first step."""

    def __init__(self, path: Path, step: int, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        self.columns = columns
        lines = self.path.read_text().splitlines()[1:] if self.path.exists() else []
        kept = [line for line in lines if int(line.split(",")[0]) <= step]
        self.path.write_text("\n".join([",".join(columns), *kept]) + "\n")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one row; columns that do not apply stay empty."""
        with self.path.open("a", newline="") as file:
            cells = {name: f"{value:.6g}" for name, value in row.items()}
            csv.DictWriter(file, self.columns).writerow({"step": str(step)} | cells)


@final
class Skipped:
    """RUN/skipped.csv: the tiles that could not be read, each once, with the reason."""

    def __init__(self, run: Path, index: Index, most: float) -> None:
        self.path = run / "skipped.csv"
        self.index = index
        self.most = most
        self.known: set[str] = set()
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.known = {row["tile"] for row in csv.DictReader(file)}

    def note(self, skipped: Iterable[tuple[int, str]]) -> str | None:
        """List new ones; returns a sentence where there are any.

        Raises:
            UserError: more than the share of tiles that may be unreadable.
        """
        new = [(self.index.name(number), reason) for number, reason in skipped]
        new = [(name, reason) for name, reason in new if name not in self.known]
        if not new:
            return None
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            table = csv.writer(file)
            table.writerows([("tile", "reason"), *new] if fresh else new)
        self.known.update(name for name, _ in new)
        if len(self.known) > self.most * len(self.index):
            raise UserError(
                f"{len(self.known)} of {len(self.index)} tiles cannot be read, more than {self.most:.2%} (for example: "
                f"{new[0][1]}); they are listed in {self.path}: mend or remove them, or raise --max-skipped"
            )
        return f"unreadable tiles are skipped and listed in {self.path} (the first: {new[0][1]})"


def read_journal(run: Path) -> list[dict[str, float]]:
    """The rows of a run's journal; empty entries are nan.

    Raises:
        UserError: the folder has no journal.
    """
    try:
        return read_rows(run / "journal.csv")
    except OSError as error:
        raise UserError(f"{run} has no readable journal.csv: is it the folder of a run?") from error


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows that a `Journal` wrote; empty entries are nan. Raises OSError if there is no such file."""
    with path.open(newline="") as file:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]


def has_rows(run: Path) -> bool:
    """Whether a run has logged anything yet."""
    path = run / "journal.csv"
    return path.exists() and len(path.read_text().splitlines()) > 1


def loggers(names: tuple[str, ...], run: Path, recipe: dict[str, Any]) -> list[Any]:
    """Lightning's loggers for these journals.

    Raises:
        UserError: a package that is not installed.
    """
    made: list[Any] = []
    for name in names:
        package = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}[name]
        if find_spec(package) is None:
            raise UserError(f"the {name} journal needs its package: pip install 'colocate[{name}]'")
        if name == "tensorboard":
            from lightning.fabric.loggers import TensorBoardLogger

            made.append(TensorBoardLogger(run, name="tensorboard", version=""))
        elif name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            made.append(WandbLogger(name=run.name, save_dir=run, project="colocate", config=recipe))
        else:
            from lightning.pytorch.loggers import MLFlowLogger

            made.append(MLFlowLogger("colocate", run_name=run.name, save_dir=str(run / "mlruns")))
    return made


@final
class Pace:
    """What is counted (pairs) per second, and the share of time spent waiting for data, since the last reading."""

    def __init__(self, counted: str = "pairs") -> None:
        self.counted = counted
        self.began = time.perf_counter()
        self.count = 0
        self.waited = 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time that each takes to come counts as waiting."""
        source = iter(items)
        while True:
            began = time.perf_counter()
            item = next(source, None)
            self.waited += time.perf_counter() - began
            if item is None:
                return
            yield item

    def read(self) -> dict[str, float]:
        """The two figures; counting starts anew."""
        spent = time.perf_counter() - self.began
        figures = {f"{self.counted}_per_s": self.count / spent, "waiting": self.waited / spent}
        self.__init__(self.counted)
        return figures


@final
class Screen(Terminal):
    """A progress bar on a terminal; elsewhere (a file, a cluster's log) a plain line every row of the journal."""

    def __init__(self, steps: int, done: int, shown: bool, doing: str = "pretrain") -> None:
        super().__init__(before="{task.fields[words]}", shown=shown)
        self.steps = steps
        self.task = self.bar.add_task(doing, total=steps, completed=done, words="starting")
        self.began, self.first = time.perf_counter(), done
        self.warned: set[str] = set()

    def __enter__(self) -> Screen:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def warn_once(self, *sentences: str | None) -> None:
        """Warnings, each kind (told by its first words) once in a run."""
        for sentence in filter(None, sentences):
            kind = sentence[:20]
            if kind not in self.warned:
                self.warned.add(kind)
                self.say(f"note: {sentence}")

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """The latest row of the journal."""
        rate = next(name for name in row if name.endswith("_per_s"))
        pace = f"{row[rate]:.1f} {rate.replace('_per_', '/')}"
        words = f"loss {row['loss']:.3f}  {pace}  waiting {row['waiting']:.0%}"
        if not math.isnan(row.get("correspondence", math.nan)):
            words = f"correspondence {row['correspondence']:.2f}  {words}"
        self.bar.update(self.task, completed=step, words=words)
        if not self.live:
            left = (time.perf_counter() - self.began) / max(1, step - self.first) * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {words}  {_clock(left)} left")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
