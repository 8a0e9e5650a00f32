"""Tables of results in words: what was done, the scores, and how sure their differences are."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.text import counted, escaped, grid
from colocate.evaluate.metrics import FAMILIES, LOWER_IS_BETTER
from colocate.evaluate.results import Difference, Interval, Result, Row, Run, grouped, interval, paired, read_results
from colocate.evaluate.tasks import InstancesTask, ProbeTask, SemanticsTask
from colocate.pretrain.recipe import leaves

HEADLINES = ("box AP", "mask AP", "object F1", "object Dice", "object Hausdorff", "PQ")
HEADLINES += ("micro Dice", "macro Dice", "micro Jaccard", "macro Jaccard", "image Dice", "pooled Dice")
FEWEST = 5  # cases or images from which draws tell anything: of a single one every draw is the same
Drawn = Literal["cases", "images"]
Runs: TypeAlias = dict[str, dict[int, Run]]
"""By backbone and seed."""


@final
@dataclass(frozen=True)
class Scores:
    """The scores of all test images, or of one part of them."""

    part: str
    """Empty: all of them."""
    over: str
    """What the intervals drew anew, such as "16 cases (80 images)"."""
    intervals: dict[str, dict[str, Interval]]
    """By backbone and score."""
    differences: dict[str, dict[str, Difference]]
    """Of each backbone from the reference, over the seeds that both have; without those that have none in common."""
    best: dict[str, str]
    """By score the backbone whose difference from the next best has an interval without zero (five images or more)."""
    seen: dict[str, dict[str, list[float]]] = field(repr=False)
    """By backbone and score each seed's value."""


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

    def common(self, label: str) -> tuple[int, ...]:
        """The seeds that a row and the reference both have."""
        row = next(row for row in self.rows if row.label == label)
        return tuple(seed for seed in row.seeds if seed in self.rows[0].seeds)


def collect(
    places: Sequence[Path], against: str | None = None, by: Drawn = "cases", *, draws: int = 1000
) -> list[Table]:
    """The tables of all results below these folders and files.

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
        which = f"{paths[0]} to {paths[-1]}"
        raise UserError(f"the results {which} do not fit together ({error}): evaluate again") from error


def _scores(rows: list[Row], part: str, by: Drawn, draws: int) -> Scores:
    """The first row is the reference."""
    reference = rows[0].label
    runs: Runs = {row.label: {result.seed: _run(result, part) for result in row.results} for row in rows}
    first = next(iter(runs[reference].values()))
    cases = [str(entry.get("source") or "") for entry in first]
    groups = cases if by == "cases" and len({*cases} - {""}) >= FEWEST else None
    intervals: dict[str, dict[str, Interval]] = {label: {} for label in runs}
    differences: dict[str, dict[str, Difference]] = {label: {} for label in runs if label != reference}
    best: dict[str, str] = {}
    seen: dict[str, dict[str, list[float]]] = {label: {} for label in runs}
    for family in rows[0].results[0].metrics:
        compare = _comparison(family, runs, groups, draws)
        found = {label: interval(family, list(seeds.values()), groups, draws=draws) for label, seeds in runs.items()}
        for label, seeds in runs.items():
            intervals[label] |= found[label]
            each = [FAMILIES[family].scores([entry[family] for entry in run]) for run in seeds.values()]
            seen[label] |= {name: [scores[name] for scores in each] for name in found[label]}
            if label != reference:
                differences[label] |= compare(label, reference)
        for name in found[reference] if len(first) >= FEWEST else ():
            one, other = _two_best(name, intervals)
            if other and (difference := compare(one, other).get(name)) and _is_better(name, difference):
                best[name] = one
    over = next(iter(intervals[reference].values())).over
    return Scores(part, over, intervals, differences, best, seen)


def _run(result: Result, part: str) -> Run:
    return [record for record in result.records if part in ("", record["part"])]


def _comparison(
    family: str, runs: Runs, groups: Sequence[str] | None, draws: int
) -> Callable[[str, str], dict[str, Difference]]:
    """Gives one backbone's scores less another's over the seeds that both have; nothing where there is none."""

    @cache
    def compare(one: str, other: str) -> dict[str, Difference]:
        seeds = [seed for seed in runs[one] if seed in runs[other]]
        first, second = ([runs[label][seed] for seed in seeds] for label in (one, other))
        return paired(family, first, second, groups, draws=draws) if seeds else {}

    return compare


def _two_best(name: str, intervals: dict[str, dict[str, Interval]]) -> tuple[str, str]:
    """The backbones with the best and the second best mean; empty where there are not two."""
    known = {label: its[name].mean for label, its in intervals.items() if not math.isnan(its[name].mean)}
    order = sorted(known, key=known.__getitem__, reverse=name not in LOWER_IS_BETTER)
    return (order[0], order[1]) if len(order) > 1 else ("", "")


def _is_better(name: str, difference: Difference) -> bool:
    return difference.high < 0 if name in LOWER_IS_BETTER else difference.low > 0


def write(tables: Sequence[Table], markdown: str, out: Path) -> None:
    """Write table.md, table.csv (one line a backbone and score) and table.json to the folder `out`.

    Raises:
        UserError: it cannot be written.
    """
    lines = [line for table in tables for line in _lines(table)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in line.items()} for line in lines)
    told = json.dumps([_told(table) for table in tables], indent=1)
    for name, content in (("table.md", markdown), ("table.csv", text.getvalue()), ("table.json", told)):
        write_atomically(out / name, lambda file, content=content: file.write(content.encode()))


def _lines(table: Table) -> Iterator[dict[str, Any]]:
    """What is known of each score of each backbone; what is not is None."""
    for number, row in enumerate(table.rows):
        data = table.first.dataset
        facts = {"task": table.first.task, "dataset": data.name, "split": data.split}
        facts |= {"fraction": table.first.fraction, "settings": table.first.how}
        facts |= {"backbone": row.label, "architecture": row.backbone.architecture, "seeds": _words(row.seeds)}
        for scores in table.scores:
            for name in table.names:
                found = _known(scores.intervals[row.label][name]._asdict())
                line = facts | {"part": scores.part or "all", "score": name} | found
                line["best"] = int(scores.best.get(name) == row.label)
                difference = scores.differences.get(row.label, {}).get(name)
                its = dict.fromkeys(Difference._fields) if difference is None else _known(difference._asdict())
                line |= {"against": table.against if number else None}
                line |= {f"difference {part}": value for part, value in its.items() if part != "over"}
                yield line | {"common seeds": _words(table.common(row.label)) if number else None}


def _told(table: Table) -> dict[str, Any]:
    """All of a table in plain values."""
    first = table.first
    return {
        "task": first.task,
        "dataset": asdict(first.dataset),
        "settings": first.settings,
        "fraction": first.fraction,
        "against": table.against,
        "backbones": [
            asdict(row.backbone)
            | {
                "label": row.label,
                "seeds": row.seeds,
                "leakage": asdict(row.results[0].leakage),
                "files": [result.path for result in row.results],
                "versions": row.results[0].versions,
                "dates": sorted({result.date for result in row.results}),
                "machines": sorted({result.machine for result in row.results}),
            }
            for row in table.rows
        ],
        "scores": list(_lines(table)),
        "seed scores": [
            {"part": scores.part or "all", "backbone": label, "score": name, "values": _plain(values)}
            for scores in table.scores
            for label, its in scores.seen.items()
            for name, values in its.items()
        ],
    }


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in facts.items()}


def _plain(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _words(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))


DEFAULTS = {"instances": InstancesTask, "semantics": SemanticsTask, "probe": ProbeTask}
NOTE = (
    "Cells: mean over seeds ± standard deviation over seeds [95 % bootstrap interval over {over}]. **Bold**: better "
    "than the next best, the interval of their difference being on one side of zero. Intervals hold what other images "
    "of this kind would have given, not what other seeds would."
)
PART = "As above, over {over}."
AGAINST = (
    "Difference from {against}, seed by seed and image by image: mean [95 % interval], and the share of draws in which "
    "the backbone is the better one."
)


def markdown(tables: Sequence[Table]) -> str:
    """All tables, each under what has to be known of it."""
    return "\n\n".join(_section(table) for table in tables)


def title(table: Table) -> str:
    """What a table is of, in a few words."""
    first = table.first
    share = "" if first.fraction == 1 else f", {first.fraction * 100:g} % of the labels"
    return f"{first.dataset.name}: {first.task}, split {first.dataset.split}{share}"


def _section(table: Table) -> str:
    blocks = [f"## {title(table)}", "\n".join(f"- {line}" for line in facts(table))]
    for scores in table.scores:
        note = PART if scores.part else NOTE
        blocks += [f"### {scores.part}"] if scores.part else []
        blocks.append(note.format(over=scores.over) + _sharing(table))
        blocks.append(_grid(table, scores, table.headlines, table.rows, _cell))
        if len(table.rows) > 1:
            blocks.append(AGAINST.format(against=table.against))
            blocks.append(_grid(table, scores, table.headlines, table.rows[1:], _difference_cell))
        others = [name for name in table.names if name not in table.headlines]
        if others and not scores.part:
            blocks.append("The other scores:")
            blocks.append(_grid(table, scores, others, table.rows, _cell))
    return "\n\n".join(blocks)


def facts(table: Table) -> list[str]:
    """What has to be known of a table, a line each."""
    results = [result for row in table.rows for result in row.results]
    data = table.first.dataset
    train = f"{_range(r.dataset.train for r in results)} training images"
    if any(result.dataset.train_sources for result in results):
        train += f" ({_range(r.dataset.train_sources for r in results)} cases)"
    test = f"{data.test} test images" + (f" ({data.test_sources} cases)" if data.test_sources else "")
    lines = [f"Data: {data.name}, split {data.split}, {train}, {test}.", *data.notes]
    shared = sorted({case for result in results for case in result.dataset.shared_sources})
    if shared:
        lines.append(f"Cases with images both in training and in test: {', '.join(shared)}.")
    elif data.test_sources:
        lines.append("No case has images both in training and in test.")
    if table.first.fraction < 1:
        lines.append(f"Labels: {table.first.fraction * 100:g} % of the training images, another choice for each seed.")
    lines.append(settings(table.first))
    lines += _seeds(table)
    lines += _leakage(table.rows)
    versions = {f"{name} {number}" for result in results for name, number in result.versions.items()}
    dates = sorted({result.date for result in results})
    machines = sorted({result.machine for result in results})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines.append(f"Made with {', '.join(sorted(versions))} on {'; '.join(machines)}, {when}.")
    return [line.replace("\n", " ") for line in lines]


def _sharing(table: Table) -> str:
    """What every table must say where the split shares cases."""
    shared = table.first.dataset.shared_sources
    return f" The split has {counted(len(shared), 'case')} both in training and in test." if shared else ""


def settings(result: Result) -> str:
    """How a result was made, as far as it differs from the task's own defaults."""
    defaults: dict[str, Any] = {}
    if result.task in DEFAULTS:
        defaults = leaves(json.loads(json.dumps(asdict(DEFAULTS[result.task]())["config"])) | {"precision": "32"})
    own = leaves(result.settings)
    other = [
        f"{name} {_word(own.get(name))}" + (f" (default {_word(defaults[name])})" if name in defaults else "")
        for name in {**defaults, **own}
        if name not in defaults or own.get(name) != defaults[name]
    ]
    return f"Settings: {', '.join(other) if other else 'the defaults'}."


def _word(value: Any) -> str:
    return "none" if value is None else json.dumps(value).replace('"', "")


def _seeds(table: Table) -> list[str]:
    seeds = {row.label: row.seeds for row in table.rows}
    if len(set(seeds.values())) == 1:
        return [f"Seeds: {', '.join(map(str, table.rows[0].seeds))}."]
    told = "; ".join(f"{label} {', '.join(map(str, its))}" for label, its in seeds.items())
    return [f"Seeds differ: {told}. Differences are over the seeds that both have."]


def _leakage(rows: Sequence[Row]) -> list[str]:
    """What was and was not checked: of all backbones once, of single ones by their labels."""
    lines = []
    for kind, verb in (("checked", "checked"), ("unchecked", "not checked"), ("found", "found")):
        said = {row.label: [s for r in row.results for s in getattr(r.leakage, kind)] for row in rows}
        every = list(dict.fromkeys(sentence for its in said.values() for sentence in its))
        having: dict[tuple[str, ...], list[str]] = {}
        for sentence in every:
            having.setdefault(tuple(label for label in said if sentence in said[label]), []).append(sentence)
        for labels, sentences in having.items():
            whose = "" if len(labels) == len(rows) else f" ({', '.join(labels)})"
            lines.append(f"Leakage {verb}{whose}: {'; '.join(sentences)}.")
    if forced := [row.label for row in rows if any(result.leakage.forced for result in row.results)]:
        lines.append(f"Evaluated in spite of leakage (--allow-leakage): {', '.join(forced)}.")
    return lines


def _grid(
    table: Table,
    scores: Scores,
    names: Sequence[str],
    rows: Sequence[Row],
    cell: Callable[[Scores, str, str], str],
) -> str:
    """A Markdown table with a row a backbone and a column a score."""
    several = len({row.backbone.architecture for row in table.rows}) > 1
    heads = ["backbone", *(["architecture"] if several else []), "seeds"]
    texts = [[*heads, *(f"{name} (px, lower is better)" if name in LOWER_IS_BETTER else name for name in names)]]
    for row in rows:
        seeds = table.common(row.label) if cell is _difference_cell else row.seeds
        start = [escaped(row.label), *([row.backbone.architecture] if several else []), str(len(seeds))]
        texts.append([*start, *(cell(scores, row.label, name) for name in names)])
    return grid(texts, left=len(heads) - 1)


def _cell(scores: Scores, label: str, name: str) -> str:
    found: Interval = scores.intervals[label][name]
    if math.isnan(found.mean):
        return "undefined"
    spread = "" if math.isnan(found.std) else f" ± {found.std:.1f}"
    mean = f"**{found.mean:.1f}**" if scores.best.get(name) == label else f"{found.mean:.1f}"
    return f"{mean}{spread} [{found.low:.1f}, {found.high:.1f}]"


def _difference_cell(scores: Scores, label: str, name: str) -> str:
    found: Difference | None = scores.differences[label].get(name)
    if found is None or math.isnan(found.mean):
        return "undefined" if found else "no seed in common"
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}], {found.share * 100:.0f} %"


def _range(numbers: Iterable[int]) -> str:
    """One number, or the smallest and largest."""
    ordered = sorted(set(numbers))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}-{ordered[-1]}"
