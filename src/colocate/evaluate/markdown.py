"""Tables of results in words: what was done, the scores, and how sure their differences are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..recipe import leaves
from ..text import counted, escaped, grid
from .metrics import LOWER_IS_BETTER
from .results import Result, Row
from .statistics import Difference, Interval
from .table import Scores, Table
from .tasks import InstancesTask, ProbeTask, SemanticsTask

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
