"""Tables of results in Markdown and CSV: scores with intervals, paired differences, and facts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.tables import write_csv
from colocate.base.text import grid
from colocate.evaluation.metrics import LOWER_IS_BETTER
from colocate.evaluation.results import (
    Difference,
    Interval,
    Result,
    Row,
    draw_images,
    grouped,
    interval,
    paired,
    read_results,
    scored,
)
from colocate.evaluation.settings import TASKS
from colocate.training.recipe import leaves

HEADLINES = ("box AP", "mask AP", "object F1", "object Dice", "object Hausdorff", "PQ")
HEADLINES += ("micro Dice", "macro Dice", "micro Jaccard", "macro Jaccard", "image Dice", "pooled Dice")
FEWEST = 5  # cases or images from which draws tell anything: of a single one every draw is the same
Drawn = Literal["cases", "images"]


@final
@dataclass(frozen=True)
class Scores:
    """The scores of all test images, or of one part of them."""

    part: str
    """Empty: all of them."""
    over: str
    """Units of the bootstrap, such as "16 cases (80 images)"."""
    intervals: dict[str, dict[str, Interval]]
    """By backbone and score."""
    differences: dict[str, dict[str, Difference]]
    """Of each backbone from the reference, over the seeds that both have; without those that have none in common."""
    best: dict[str, str]
    """By score the backbone whose difference from the next best has an interval without zero (five images or more)."""


@final
@dataclass(frozen=True)
class Table:
    """Backbones on one task, data set, split, share of labels and settings; never of several."""

    rows: tuple[Row, ...]
    against: str
    """The label of the reference, which is the first row."""
    scores: tuple[Scores, ...]
    """Of all test images, then of each part where there are several."""

    @property
    def first(self) -> Result:
        return self.rows[0].results[0]

    @property
    def names(self) -> list[str]:
        """The scores that there are, headlines first."""
        names = list(self.scores[0].intervals[self.against])
        return [name for name in HEADLINES if name in names] + [name for name in names if name not in HEADLINES]

    @property
    def headlines(self) -> list[str]:
        return [name for name in self.names if name in HEADLINES]

    def common(self, row: Row) -> list[int]:
        """The seeds that a row and the reference both have."""
        return [seed for seed in row.seeds if seed in self.rows[0].seeds]


def collect(
    places: Sequence[Path], against: str | None = None, by: Drawn = "cases", *, draws: int = 1000
) -> list[Table]:
    """Compute the tables of all results below these folders and files.

    Args:
        places: Folders of results, or result.json files.
        against: The backbone that others are compared with; None: `random` where there is one, else the first.
        by: What the bootstrap draws: whole cases, where five or more are known, or images one by one.
        draws: How often.

    Raises:
        UserError: no results, a damaged one, or no backbone of that label.
    """
    groups = grouped(read_results(places))
    labels = sorted({row.label for rows in groups for row in rows})
    if against is not None and against not in labels:
        raise UserError(f"no backbone is called {against!r}: --against is one of {', '.join(labels)}")
    return [_table(rows, against, by, draws) for rows in groups]


def _table(rows: list[Row], against: str | None, by: Drawn, draws: int) -> Table:
    labels = [row.label for row in rows]
    reference = next((word for word in (against, "random") if word in labels), labels[0])
    rows = sorted(rows, key=lambda row: row.label != reference)
    parts = dict.fromkeys(record["part"] for record in rows[0].results[0].records)
    some = ["", *parts] if len(parts) > 1 else [""]
    try:
        return Table(tuple(rows), reference, tuple(_scores(rows, part, by, draws) for part in some))
    except (ValueError, KeyError, TypeError) as error:
        paths = sorted(result.path for row in rows for result in row.results)
        raise UserError(f"the results {paths[0]} to {paths[-1]} do not fit together ({error})") from error


def _scores(rows: list[Row], part: str, by: Drawn, draws: int) -> Scores:
    """The scores of one part; the first row is the reference."""
    reference = rows[0].label
    results = {(row.label, result.seed): result for row in rows for result in row.results}
    alike = zip(*(result.records for result in results.values()), strict=True)  # of one image each
    here = [(place, records) for place, records in enumerate(alike) if part in ("", records[0]["part"])]
    places = [place for place, records in here if not any(map(_is_void, records))] or [place for place, _ in here]
    runs = [[result.records[place] for place in places] for result in results.values()]
    cases = [str(entry.get("source") or "") for entry in runs[0]]
    groups = cases if by == "cases" and len({*cases} - {""}) >= FEWEST else None
    counts, over = draw_images(len(places), groups, draws)
    found = Scores(part, over, {row.label: {} for row in rows}, {row.label: {} for row in rows[1:]}, {})
    for family in rows[0].results[0].metrics:
        for name, each in scored(family, runs, counts).items():
            drawn: dict[str, dict[int, Any]] = {row.label: {} for row in rows}
            for (label, seed), values in zip(results, each, strict=True):
                drawn[label][seed] = values
            lower = name in LOWER_IS_BETTER
            for label, its in drawn.items():
                found.intervals[label][name] = interval(list(its.values()), over)
                difference = _difference(its, drawn[reference], over, lower) if label != reference else None
                if difference:
                    found.differences[label][name] = difference
            means = {label: its[name].mean for label, its in found.intervals.items() if not math.isnan(its[name].mean)}
            if len(means) > 1 and len(places) >= FEWEST:
                first, second = sorted(means, key=means.__getitem__, reverse=not lower)[:2]
                difference = _difference(drawn[first], drawn[second], over, lower)
                if difference and (difference.high < 0 if lower else difference.low > 0):
                    found.best[name] = first
    return found


def _difference(first: dict[int, Any], second: dict[int, Any], over: str, lower: bool) -> Difference | None:
    """Over the seeds that both have, by which their draws are given; None if there are none."""
    seeds = [seed for seed in first if seed in second]
    return paired([first[seed] for seed in seeds], [second[seed] for seed in seeds], over, lower) if seeds else None


def _is_void(record: dict[str, Any]) -> bool:
    """Whether nothing counts of an image, all of whose pixels are ignored."""
    if "probe" in record:
        return record["probe"]["dice"] is None
    return "semantic" in record and not any(record["semantic"].values())


def write(tables: Sequence[Table], markdown: str, out: Path) -> None:
    """Write table.md and table.csv (a line for each backbone, part and score) to the folder `out`.

    Raises UserError: it cannot be written.
    """
    lines = [line for table in tables for line in _lines(table)]
    write_atomically(out / "table.md", markdown)
    write_csv(
        out / "table.csv",
        list(lines[0]),
        [["" if value != value else value for value in line.values()] for line in lines],
    )


def _lines(table: Table) -> Iterator[dict[str, Any]]:
    """Yield a line for each backbone, part and score; values that are not known are nan."""
    first, data = table.first, table.first.dataset
    known: dict[str, Any] = {"task": first.task, "dataset": data.name, "split": data.split}
    known |= {"data": data.fingerprint[:8], "fraction": first.fraction, "settings": first.how}
    for row in table.rows:
        reference = row is table.rows[0]
        known |= {"backbone": row.label, "architecture": row.backbone.architecture, "seeds": _words(row.seeds)}
        for scores in table.scores:
            for name in table.names:
                found = scores.intervals[row.label][name]
                line = known | {"part": scores.part or "all", "score": name} | found._asdict()
                line["values"] = _words(found.values)
                line["best"] = int(scores.best.get(name) == row.label)
                line["against"] = "" if reference else table.against
                difference = scores.differences.get(row.label, {}).get(name)
                for part in ("mean", "std", "low", "high", "share"):
                    line[f"difference {part}"] = math.nan if difference is None else getattr(difference, part)
                yield line | {"common seeds": "" if reference else _words(table.common(row))}


def _words(numbers: Sequence[float]) -> str:
    return " ".join(map(str, numbers))


NOTE = (
    "Cells: mean over seeds ± standard deviation over seeds [95 % bootstrap interval over {over}]. **Bold**: better "
    "than the next best, the interval of their difference being on one side of zero. Intervals hold what other images "
    "of this kind would have given, not what other seeds would."
)
AGAINST = (
    "Difference from {against}, seed by seed and image by image: mean [95 % interval], and the share of draws in which "
    "the backbone is the better one."
)


class Numbers(NamedTuple):
    """A table as it is shown."""

    part: str
    """Of the test images; empty: all of them."""
    rows: list[list[str]]
    """Heads first; a row a backbone, a column a score. **Bold** as in Markdown."""
    note: str
    """What the cells are."""


def numbers(table: Table) -> Iterator[Numbers]:
    """What is shown of a table: scores and differences of all images and of each part, then the other scores."""
    for scores in table.scores:
        note = f"As above, over {scores.over}." if scores.part else NOTE.format(over=scores.over)
        yield Numbers(scores.part, _rows(table.headlines, table.rows, lambda row: row.seeds, scores, _cell), note)
        if len(table.rows) > 1:
            rows = _rows(table.headlines, table.rows[1:], table.common, scores, _difference_cell)
            yield Numbers(scores.part, rows, AGAINST.format(against=table.against))
    if others := [name for name in table.names if name not in table.headlines]:
        rows = _rows(others, table.rows, lambda row: row.seeds, table.scores[0], _cell)
        yield Numbers("", rows, "The other scores of all images.")


def markdown(tables: Sequence[Table]) -> str:
    """All tables in Markdown: the numbers, below them what they mean, at last what they are of."""
    return "\n\n".join(_section(table) for table in tables)


def title(table: Table) -> str:
    """Data set, task and split of a table."""
    first = table.first
    share = "" if first.fraction == 1 else f", {first.fraction * 100:g} % of the labels"
    return f"{first.dataset.name}: {first.task}, split {first.dataset.split}{share}"


def _section(table: Table) -> str:
    blocks, part = [f"## {title(table)}"], ""
    for its in numbers(table):
        if its.part != part:
            blocks.append(f"### {its.part or 'all images'}")
        part = its.part
        blocks += [grid(its.rows, left=2), its.note]
    return "\n\n".join([*blocks, "\n".join(f"- {line}" for line in facts(table))])


def facts(table: Table) -> list[str]:
    """Facts to state with a table, a line each: data, settings, seeds, leakage, versions."""
    results = [result for row in table.rows for result in row.results]
    data, fraction = table.first.dataset, table.first.fraction
    cases = sorted({result.dataset.train_sources for result in results})  # each seed may choose others
    known = f"{cases[0]}" if len(cases) == 1 else f"{cases[0]} to {cases[-1]}"
    train = f"{data.train} training images of {known} known cases"
    test = f"{data.test} test images of {data.test_sources}"
    lines = [f"Data: {data.name} ({data.fingerprint[:8]}), split {data.split}, {train}, {test}.", *data.notes]
    shared = sorted({case for result in results for case in result.dataset.shared_sources})
    none = "none" if data.test_sources else "not known"
    lines.append(f"Cases with images both in training and in test: {', '.join(shared) or none}.")
    if fraction < 1:
        lines.append(f"Labels: {fraction * 100:g} % of the training images, another choice for each seed.")
    lines.append(settings(table.first))
    if "coco" in table.first.metrics:
        most = f"the surest {table.first.counted} detections of a class in an image"
        lines.append(f"Average precision (AP) counts {most}: with more true objects there it cannot reach 100.")
    if "probe" in table.first.metrics:
        lines.append("Dice of a probe is of all classes but the first, 0, which is taken for the background.")
    if len({row.seeds for row in table.rows}) == 1:
        lines.append(f"Seeds: {', '.join(map(str, table.rows[0].seeds))}.")
    else:
        told = "; ".join(f"{row.label} {', '.join(map(str, row.seeds))}" for row in table.rows)
        lines.append(f"Seeds differ: {told}. Differences are over the seeds that both have.")
    lines += _leakage(table.rows)
    versions = {f"{name} {number}" for result in results for name, number in result.versions.items()}
    dates = sorted({result.date for result in results})
    machines = sorted({result.machine for result in results})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines.append(f"Made with {', '.join(sorted(versions))} on {'; '.join(machines)}, {when}.")
    return [line.replace("\n", " ") for line in lines]


def settings(result: Result) -> str:
    """The settings of a result that differ from the defaults of its task."""
    plain = json.loads(json.dumps(asdict(TASKS[result.task]())))
    defaults, own = leaves(plain | {"precision": "32"}), leaves(result.settings)
    other = [
        f"{name} {own.get(name)} (default {defaults.get(name)})"
        for name in {**defaults, **own}
        if own.get(name) != defaults.get(name)
    ]
    return f"Settings: {', '.join(other) if other else 'the defaults'}."


def _leakage(rows: Sequence[Row]) -> list[str]:
    """Each sentence of the leakage checks, with the backbones that it is about."""
    lines = []
    for kind, verb in (("checked", "checked"), ("unchecked", "not checked"), ("found", "found")):
        said: dict[str, dict[str, None]] = {}
        for row in rows:
            for sentence in (sentence for result in row.results for sentence in getattr(result.leakage, kind)):
                said.setdefault(sentence, {})[row.label] = None
        for sentence, labels in said.items():
            whose = "all" if len(labels) == len(rows) else ", ".join(labels)
            lines.append(f"Leakage {verb} ({whose}): {sentence}.")
    if forced := [row.label for row in rows if any(result.leakage.forced for result in row.results)]:
        lines.append(f"Evaluated in spite of leakage (--allow-leakage): {', '.join(forced)}.")
    return lines


def _rows(
    names: Sequence[str],
    rows: Sequence[Row],
    seeds: Callable[[Row], Sequence[int]],
    scores: Scores,
    cell: Callable[[Scores, str, str], str],
) -> list[list[str]]:
    """Heads, then a row a backbone, with a column a score."""
    heads = (f"{name} (px, lower is better)" if name in LOWER_IS_BETTER else name for name in names)
    texts = [["backbone", "architecture", "seeds", *heads]]
    for row in rows:
        start = [row.label, row.backbone.architecture, str(len(seeds(row)))]
        texts.append([*start, *(cell(scores, row.label, name) for name in names)])
    return texts


def _cell(scores: Scores, label: str, name: str) -> str:
    found = scores.intervals[label][name]
    if math.isnan(found.mean):
        return "undefined"
    spread = "" if math.isnan(found.std) else f" ± {found.std:.1f}"
    mean = f"**{found.mean:.1f}**" if scores.best.get(name) == label else f"{found.mean:.1f}"
    interval = "" if math.isnan(found.low) else f" [{found.low:.1f}, {found.high:.1f}]"
    return f"{mean}{spread}{interval}"


def _difference_cell(scores: Scores, label: str, name: str) -> str:
    found = scores.differences[label].get(name)
    if found is None or math.isnan(found.mean):
        return "undefined" if found else "no seed in common"
    if math.isnan(found.low):
        return f"{found.mean:+.1f}"
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}], {found.share * 100:.0f} %"
