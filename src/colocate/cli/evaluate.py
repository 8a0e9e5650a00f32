"""`colocate evaluate`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import tyro

from colocate.base.errors import UserError
from colocate.base.text import counted, say
from colocate.cli.pretrain import check_first, taken
from colocate.core.settings import PlainWeights
from colocate.evaluation.settings import TASKS, Protocol, Task, task_for
from colocate.training.recipe import Flat

AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Asked(Generic[AnyTask]):
    """Judge backbones by segmentation."""

    backbone: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BACKBONE ...", help_behavior_hint="(required)")]
    """One or more: a run's folder, a weights file, imagenet or random; LABEL=... sets its name in tables."""
    protocol: Annotated[Protocol, Flat]
    weights: Annotated[PlainWeights, Flat]
    task: Annotated[AnyTask, Flat]


def evaluate(arguments: list[str]) -> None:
    """Judge backbones by segmentation: colocate evaluate TASK --data DATA --backbone RUN ...

    The data set decides the task's defaults.

    Raises UserError: words that make no sense, and what the protocol raises.
    """
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    rest = arguments[1:] if name else arguments
    asks_help = not name and bool({"-h", "--help"} & set(rest))
    if name not in TASKS and not asks_help:
        raise UserError(f"colocate evaluate {name or 'what'}? There are {', '.join(TASKS)}")
    check_first(rest, "a data set is")
    smoke, rest = "--smoke" in rest, [word for word in rest if word != "--smoke"]
    task = task_for(name or "instances", taken("--data", rest)[0] or "", smoke)
    asked: Any = tyro.cli(
        Asked[type(task)],  # pyright: ignore[reportInvalidTypeArguments]
        prog=f"colocate evaluate {name or 'TASK'}",
        description=f"TASK is one of {', '.join(TASKS)}. --data DATA sets the defaults shown here; --smoke takes tiny "
        "ones, to check that everything is in place.",
        default=Asked((), Protocol(), PlainWeights(), task),
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
    if not asked.protocol.data:
        raise UserError("give --data DATA, a folder that `colocate prepare` wrote")
    from colocate.evaluation.candidates import find_candidates
    from colocate.evaluation.protocol import evaluate as judge

    plain = asked.weights
    candidates = find_candidates(asked.backbone, plain.architecture, plain.mean, plain.std)
    files = judge(asked.task, asked.protocol, candidates)
    done, place = counted(len(files), "result"), shlex.quote(str(files[0].parent.parent))
    say(f"done: {done}; see them with: colocate table {place}")
