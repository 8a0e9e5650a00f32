"""`python -m benchmarks.glas pack|run|report`: see README.md."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.glas.pack import MOST_BYTES, pack, unpack
from benchmarks.glas.stages import SIZES, run
from colocate.errors import UserError
from colocate.evaluate.markdown import markdown
from colocate.evaluate.table import Drawn, collect, write
from colocate.figures import compare
from colocate.figures.scores import scores


def pack_command(
    glas: Path, ebhi: Path, lc25000: Path, out: Path = Path("packs"), mib: float = MOST_BYTES / 2**20
) -> None:
    """Pack the data in archives.

    Args:
        glas: GlaS as released.
        ebhi: EBHI-Seg as released.
        lc25000: LC25000's colon tiles.
        out: Folder for the archives.
        mib: Largest size of one, in MiB.
    """
    for part in pack(glas, ebhi, lc25000, out, int(mib * 2**20)):
        print(f"{part}: {part.stat().st_size / 2**20:.1f} MiB")


def run_command(
    packs: Path,
    out: Path,
    minutes: float = 9.5,
    recipes: tuple[str, ...] = ("moco-v2", "densecl", "plm", "random"),
    seeds: int = 3,
    split: Literal["official", "patients"] = "patients",
    size: Literal["gpu", "smoke"] = "gpu",
) -> None:
    """Pretrain and evaluate, as far as the time goes; exit status 75 when there is more to do.

    Args:
        packs: Folder of the archives.
        out: Folder for everything: unpacked data, runs, results; the same one goes on.
        minutes: Time after which it saves itself and leaves.
        recipes: Recipes to compare (their -small forms), and random.
        seeds: Seeds of the evaluation.
        split: GlaS's official split, or the one without shared patients.
        size: gpu: one large GPU; smoke: a few minutes of a CPU, to see that all is in place.
    """
    unpack(packs, out / "data")
    sys.exit(run(out / "data", out, list(recipes), seeds, split, SIZES[size], minutes))


def report_command(out: Path, by: Drawn = "cases") -> None:
    """Write OUT/report: table.md, .csv, .json, .png, the curves of pretraining, and overlays.

    Args:
        out: The folder of `run`.
        by: What intervals draw anew: cases or images.
    """
    folder = out / "report"
    tables = collect([out / "results"], None, by)
    write(tables, markdown(tables) + "\n", folder)
    scores(tables, folder / "table.png")
    runs = sorted(path.parent for path in (out / "runs").glob("*/journal.csv"))
    if len(runs) > 1:
        (folder / "pretraining.md").write_text(compare(runs, folder / "pretraining.png") + "\n")
    for sheet in sorted((out / "results").glob("*-seed0-*/overlays.png")):
        shutil.copy(sheet, folder / f"{sheet.parent.name}.png")
    print(f"written: {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors end in one sentence and exit status 2."""
    commands = {"pack": pack_command, "run": run_command, "report": report_command}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks.glas", args=arguments)
    except UserError as error:
        print(f"benchmarks.glas: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
