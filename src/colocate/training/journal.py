"""What a run says while it goes: journal.csv, progress on screen, skipped tiles, other trackers."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from colocate.base.errors import UserError, not_installed
from colocate.base.files import write_atomically
from colocate.base.text import Terminal

if TYPE_CHECKING:
    from colocate.data.index import Index

COLUMNS = ("step", "epoch", "lr", "loss", "grad_norm", "overlap", "feature_std", "effective_rank", "within_tile")
COLUMNS += ("correspondence", "correspondence_chance", "displaced", "displaced_chance")
COLUMNS += ("pairs_per_s", "waiting", "crowded")  # of a journal, beside the terms of the loss
CROWDED = 0.1  # of the time: other processes slow a run, not its data

Item = TypeVar("Item")
Tracker = Callable[[Mapping[str, float], int], object]
"""Takes a row and its step."""


@final
class Journal:
    """A CSV table (RUN/journal.csv), a row every few steps; its columns are those of the first row.

    A resumed run drops the rows after its first `step`.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            self.columns, rows = _read_table(path)
            kept = [row for row in rows if int(row[0]) <= step]
            text = "".join(f"{','.join(row)}\n" for row in ([self.columns] if self.columns else []) + kept)
            write_atomically(path, text)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one row; columns that do not apply stay empty."""
        with self.path.open("a", newline="") as file:
            fresh = not self.columns
            self.columns = self.columns or ["step", *row]
            table = csv.DictWriter(file, self.columns, extrasaction="ignore")
            if fresh:
                table.writeheader()
            table.writerow({"step": str(step)} | {name: f"{value:.6g}" for name, value in row.items()})
            file.flush()
            os.fsync(file.fileno())


@final
class UnreadableTiles:
    """RUN/skipped.csv: the tiles that could not be read, each once, with the reason.

    Of several processes, which count the same ones, one `writes`.
    """

    def __init__(self, run: Path, index: Index, most: float, writes: bool = True) -> None:
        self.path = run / "skipped.csv"
        self.writes = writes
        self.index = index
        self.most = most
        self.known: set[str] = set()
        if self.path.exists():
            stored = self.path.read_bytes()
            whole = stored[: stored.rfind(b"\n") + 1]  # a run that was killed may have left half a line
            if whole != stored and writes:
                write_atomically(self.path, whole)
            self.known = {row[0] for row in csv.reader(io.StringIO(whole.decode(), newline="")) if row} - {"tile"}

    def note(self, skipped: Iterable[tuple[int, str]]) -> str | None:
        """List new ones; returns a sentence where there are any.

        Raises UserError: more than the share of tiles that may be unreadable.
        """
        new = [(self.index.name(number), reason) for number, reason in skipped]
        new = [(name, reason) for name, reason in dict(new).items() if name not in self.known]
        if not new:
            return None
        if self.writes:
            fresh = not self.path.exists() or not self.path.stat().st_size
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


def check_terms(names: Iterable[str]) -> None:
    """Raises UserError for a name of a loss term that a journal cannot have a column of."""
    for name in names:
        if name in COLUMNS or not re.fullmatch(r'[^,"\r\n]+', name):
            why = "is a column of the journal already" if name in COLUMNS else "is no name of a column"
            raise UserError(f"the method calls a term of its loss {name!r}, which {why}: give it another name")


def read_journal(run: Path) -> list[dict[str, float]]:
    """The rows of a run's journal; empty entries are nan. Raises UserError: the folder has no journal."""
    try:
        return read_rows(run / "journal.csv")
    except OSError as error:
        raise UserError(f"{run} has no readable journal.csv: is it the folder of a run?") from error


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows that a `Journal` wrote; empty entries are nan. Raises OSError if there is no such file."""
    columns, rows = _read_table(path)
    return [{name: float(cell or "nan") for name, cell in zip(columns, row, strict=True)} for row in rows]


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, without what a full disk or a power cut left torn."""
    text = path.read_text(errors="replace")
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]  # a line without its end may lack digits too
    columns = header.split(",") if header.startswith("step,") else []
    rows: list[list[str]] = []
    for line in lines:
        cells = line.split(",")
        with suppress(ValueError):  # what is no number
            numbers = [float(cell or "nan") for cell in cells]
            after = not rows or int(cells[0]) > int(rows[-1][0])
            if len(numbers) == len(columns) and cells[0].isdecimal() and after:
                rows.append(cells)
    return columns, rows


def loss_terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of the loss terms in a journal: its columns between `loss` and `grad_norm`."""
    names = list(rows[0]) if rows else []
    if not {"loss", "grad_norm"} <= set(names):
        return []
    return [name for name in names[names.index("loss") + 1 : names.index("grad_norm")] if name != "overlap"]


def begun(run: Path, resume: bool) -> bool:
    """Whether a folder holds a run that has saved or logged anything yet.

    Raises UserError: it does, and is not to be gone on with.
    """
    journal = run / "journal.csv"
    saved = any((run / "checkpoints").glob("step*.pt")) or (journal.exists() and bool(_read_table(journal)[1]))
    found = saved and (run / "recipe.json").exists()
    if found and not resume:
        raise UserError(f"{run} holds a run already: go on with it by --resume, or choose another --out")
    return found


DEFAULT = "tensorboard"  # which a run does without


def without_default(names: Sequence[str]) -> str | None:
    """A sentence where the default tracker is not installed: the run goes on with its journal alone."""
    if DEFAULT not in names or find_spec(DEFAULT):
        return None
    return f"only journal.csv is written, for {not_installed(DEFAULT)}"


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if the package of a tracker that was asked for (so not the default) is not installed."""
    for name in names:
        if name != DEFAULT and find_spec(name) is None:
            raise UserError(f"the {name} journal: {not_installed(name)}")


@contextmanager
def trackers(names: Sequence[str], run: Path, recipe: dict[str, Any]) -> Iterator[list[Tracker]]:
    """Functions that log a row of the journal elsewhere: tensorboard, wandb or mlflow; closed at the end, as failed
    after an error."""
    made: list[Tracker] = []
    with ExitStack() as ends:
        for name in names:
            if name == DEFAULT:
                if without_default(names):
                    continue
                made.append(_tensorboard(run / "tensorboard", run / "journal.csv", ends))
            elif name == "wandb":
                import wandb  # pyright: ignore[reportMissingImports]

                tracked = ends.enter_context(wandb.init(project="colocate", name=run.name, dir=run, config=recipe))
                made.append(lambda row, step, tracked=tracked: tracked.log(dict(row), step=step))
            else:
                import mlflow  # pyright: ignore[reportMissingImports]

                if "MLFLOW_TRACKING_URI" not in os.environ:
                    mlflow.set_tracking_uri((run / "mlruns").absolute().as_uri())
                mlflow.set_experiment("colocate")
                ends.enter_context(mlflow.start_run(run_name=run.name))
                made.append(lambda row, step, mlflow=mlflow: mlflow.log_metrics(dict(row), step=step))
        yield made


def _tensorboard(folder: Path, journal: Path, ends: ExitStack) -> Tracker:
    """Drops what the journal has dropped, the steps of a crashed run after its last checkpoint."""
    from torch.utils.tensorboard import SummaryWriter

    kept = [int(row["step"]) for row in read_rows(journal)] if journal.exists() else []

    @cache
    def opened() -> SummaryWriter:
        """Made for the first row: a run that is refused before it has no thread that writes to what is removed."""
        ends.enter_context(_quiet_writers())
        writer = SummaryWriter(str(folder), purge_step=max(kept, default=0) + 1)
        ends.callback(close, writer)
        return writer

    def close(writer: SummaryWriter) -> None:
        with suppress(OSError, ValueError):  # which `log` has raised, too
            writer.close()

    def log(row: Mapping[str, float], step: int) -> None:
        try:
            for column, value in row.items():
                opened().add_scalar(column, value, step)
            opened().flush()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{folder} was not written ({reason}): make room, and go on with --resume") from error

    return log


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """Where TensorBoard fails to write, its thread prints no traceback, as the next call raises the error."""
    usual = threading.excepthook

    def tell(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            usual(failed)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = usual


@final
class Throughput:
    """What is counted (pairs) per second, and the shares of time spent waiting for data, and for a core."""

    def __init__(self, counted: str = "pairs") -> None:
        self.counted = counted
        self.began = time.perf_counter()
        self.count = 0
        self.waited = 0.0
        self.kept_out = _kept_out()

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
        """What is counted a second, and both shares of the time (`crowded`: on Linux alone); counting starts anew."""
        spent, kept_out = time.perf_counter() - self.began, self.kept_out
        figures = {f"{self.counted}_per_s": self.count / spent, "waiting": self.waited / spent}
        self.__init__(self.counted)
        if kept_out is not None and self.kept_out is not None:
            figures["crowded"] = (self.kept_out - kept_out) / spent
        return figures


def _kept_out() -> float | None:
    """Seconds that this thread was ready to run while others had the cores; None where nobody counts them."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


@final
class ProgressBar(Terminal):
    """A progress bar on a terminal; elsewhere (a file, a cluster's log) a plain line every row of the journal."""

    def __init__(self, steps: int, done: int, shown: bool, doing: str = "pretrain") -> None:
        super().__init__(before="{task.fields[words]}", shown=shown)
        self.steps = steps
        self.task = self.bar.add_task(doing, total=steps, completed=done, words="starting")
        self.began, self.first = time.perf_counter(), done
        self.warned: set[str] = set()

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
        if row.get("crowded", 0.0) > CROWDED:
            words += f"  machine busy {row['crowded']:.0%}"
        if not math.isnan(row.get("correspondence", math.nan)):
            words = f"correspondence {row['correspondence']:.2f}  {words}"
        self.bar.update(self.task, completed=step, words=words)
        if not self.live:
            left = (time.perf_counter() - self.began) / max(1, step - self.first) * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {words}  {timedelta(seconds=round(left))} left")
