"""Do compiled and bfloat16 runs learn what the plain float32 run does? Their curves, laid over each other.

`python benchmarks/agreement.py --data TILES --runs FOLDER`; runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import cpu_model
from colocate.base.files import write_atomically
from colocate.base.text import grid
from colocate.pages.style import COLOURS, SOFT, heading, plot, png
from colocate.training.journal import read_journal
from colocate.training.loop import pretrain
from colocate.training.recipe import MachineConfig, Recipe
from colocate.training.recipes import find_recipe

OUT = Path(__file__).parents[1] / "docs" / "results" / "agreement.png"
STEPS, EVERY = 200, 2
WAYS = {
    "float32": {},
    "float32, compiled": {"compile": True},
    "bfloat16": {"precision": "bf16-mixed"},
    "float32, another seed": {"seed": 1},
}
SHOWN = {"loss": "loss", "correspondence": "correspondence accuracy", "effective_rank": "effective rank"}


def recipe(data: Path) -> Recipe:
    """ResNet-18 at 64 px with 4 x 4 cells, 64 tiles a batch: minutes on two cores."""
    small = find_recipe("plm-small")
    return replace(
        small,
        data=str(data),
        encoder=replace(small.encoder, output_stride=16),
        views=replace(small.views, size=64),
        batch=64,
        steps=STEPS,
        machine=MachineConfig(workers=1, log_every=EVERY, save_every=STEPS, journals=()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tiles")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    journals = {}
    for way, changes in WAYS.items():
        run = args.runs / way.replace(", ", "-").replace(" ", "-")
        if not (run / "journal.csv").exists() or read_journal(run)[-1]["step"] < STEPS:
            pretrain(replace(recipe(args.data), out=str(run), **changes), resume=True)  # pyright: ignore[reportArgumentType]
        journals[way] = read_journal(run)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()
    where = f"{device}, torch {torch.__version__}, {datetime.date.today().isoformat()}"
    figure = Figure(figsize=(12.5, 4.1), layout="constrained")
    heading(figure, "The same training by other arithmetic", f"Every {EVERY}nd step of {STEPS}. {where}")
    for axes, (column, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        plot(axes, title, "step")
        for colour, (way, rows) in zip((*list(COLOURS.values())[:3], SOFT), journals.items(), strict=True):
            steps, values = ([row[name] for row in rows] for name in ("step", column))
            axes.plot(steps, values, color=colour, label=way, linewidth=1, alpha=0.5 if colour == SOFT else 1)
        if column == "loss":
            axes.legend(fontsize=7.5, frameon=False, loc="upper center")
    write_atomically(args.out, lambda file: file.write(png(figure)))
    print(f"{where}; made by `python benchmarks/agreement.py`\n")
    plain = [row["loss"] for row in journals["float32"]]
    table = [["against float32", "loss off at step 2", "at most in 20 steps", "mean of all"]]
    for way, rows in journals.items():
        off = [abs(row["loss"] - loss) / loss for row, loss in zip(rows, plain, strict=True)]
        table.append([way, f"{off[0]:.1e}", f"{max(off[:10]):.1e}", f"{statistics.mean(off):.1e}"])
    print(grid(table, left=1))


if __name__ == "__main__":
    main()
