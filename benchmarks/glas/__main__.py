"""Does a pretraining segment GlaS better? `python benchmarks/glas pack|run|report`, and see the README beside this."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.glas.archives import Packs
from benchmarks.glas.pack import pack
from benchmarks.glas.plan import SIZES, Plan, Size, keep_plan, stored_plan
from benchmarks.glas.report import report
from benchmarks.glas.run import Proof
from colocate.errors import UserError
from colocate.evaluate.command import taken

MORE = 75  # EX_TEMPFAIL: call again


@dataclass(frozen=True)
class Run:
    """Pretrain recipes and judge each by GlaS, for so many minutes; the same command goes on."""

    packs: Path
    """The folder that `pack` wrote."""
    out: Path
    """The folder to work in."""
    recipes: tuple[str, ...]
    """Recipes of the paper, and random for none."""
    seeds: int
    """Fine-tunings of each, and on each split."""
    splits: tuple[str, ...]
    """Ways to split GlaS: official, patients."""
    size: Annotated[Size, tyro.conf.arg(name="")]
    minutes: float = 9.5
    """When to stop; saving, or judging the test images once fine-tuning is over, comes on top."""
    accelerator: str = "auto"
    """auto, cpu, gpu."""
    workers: int | None = None
    """Processes that read images (default: the cores at hand, at most 8)."""


def run(arguments: list[str]) -> int:
    """Pretrain recipes and judge each by GlaS, in pieces of some minutes. Exit status 75: there is more to do."""
    name, rest = taken("--size", arguments)
    out, _ = taken("--out", arguments)
    if name and name not in SIZES:
        raise UserError(f"--size {name}: there are {', '.join(SIZES)}")
    preset = SIZES[name or "gpu"]
    plan = (out and stored_plan(Path(out))) or preset
    plan = replace(plan, size=preset.size) if name else plan
    asked = tyro.cli(
        Run,
        prog="python benchmarks/glas run",
        description=f"--size {'|'.join(SIZES)} sets the sizes shown here (default: as the folder was begun, else gpu).",
        default=Run(tyro.MISSING, tyro.MISSING, plan.recipes, plan.seeds, plan.splits, plan.size),
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
    packs = Packs.open(asked.packs)
    plan = Plan(asked.recipes, asked.seeds, asked.splits, asked.size, packs.fingerprint)
    keep_plan(plan, asked.out)
    packs.copy_list(asked.out)
    proof = Proof(plan, packs, asked.out, asked.accelerator, asked.workers)
    left = proof.work(60 * asked.minutes, say=lambda words: print(words, flush=True))
    count = len(plan.stages())
    print(f"{count - len(left)} of {count} stages are done" + (", left are:" if left else ""))
    for stage in left:
        print(f"  {proof.progress(stage)}")
    return MORE if left else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors end in one sentence and status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, rest = (words or [""])[0], words[1:]
    commands = {"pack": pack, "report": report}
    try:
        if name == "run":
            return run(rest)
        if name not in commands:
            raise UserError("say pack, run or report (and --help for their options)")
        tyro.cli(commands[name], prog=f"python benchmarks/glas {name}", args=rest)
    except (UserError, OSError) as error:
        print(f"benchmarks/glas: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
