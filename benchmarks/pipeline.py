"""Pairs a second from JPEG files to weights, ours against a plain pipeline: `python benchmarks/pipeline.py --help`.

The plain one: torchvision's PIL views in as many loader processes as there are cores, then the plain step
(tests/reference/step.py): every pair of cells, logits written out, nothing compiled, float32 (on a GPU with TF32).
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import cpu_model
from colocate.base.text import grid
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_params
from colocate.data.index import Index
from colocate.data.phantom import phantom_tile
from colocate.methods.moco import MoCo
from colocate.training.journal import read_journal
from colocate.training.loop import build_method, pretrain
from colocate.training.recipe import MachineConfig, Recipe
from colocate.training.recipes import plm
from tests.reference.step import PlainStep
from tests.reference.views import moco_v2_chain

PX = 224


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class PilViews(Dataset[Pair]):
    """Two views of each file by the usual chain of transforms."""

    def __init__(self, files: list[Path], count: int) -> None:
        self.files, self.count = files, count
        self.chain: Any = moco_v2_chain(PX)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Pair:
        with Image.open(self.files[number % len(self.files)]) as image:
            tile = image.convert("RGB")
        return Pair(self.chain(tile), self.chain(tile))


def plain_rate(recipe: Recipe, files: list[Path], steps: int, device: torch.device, cores: int) -> float:
    """Pairs a second over the second half of the steps."""
    method = build_method(replace(recipe, compile=False)).to(device)
    assert isinstance(method, MoCo)
    step = PlainStep(method, recipe.optim.lr)
    sizes, index = torch.tensor([PX, PX]).expand(recipe.batch, 2), torch.arange(recipe.batch)
    own, other = (sample_params(ViewConfig(), sizes, index, 0, 0, view).crop for view in (0, 1))
    views: Any = DataLoader(
        PilViews(files, steps * recipe.batch), recipe.batch, num_workers=cores, pin_memory=device.type == "cuda"
    )
    losses = (step(first.to(device), second.to(device), own, other) for first, second in views)
    return recipe.batch / _second_half(losses)


def _second_half(losses: Iterator[Tensor]) -> float:
    """Seconds of a step, once all is warm; every loss is waited for, as a progress bar would."""
    times = [time.perf_counter() for loss in losses if loss.item() < float("inf")]
    half = len(times) // 2
    return (times[-1] - times[half]) / (len(times) - 1 - half)


def our_rate(recipe: Recipe, steps: int, run: Path) -> tuple[float, float]:
    """Pairs a second, and the share of waiting, of the second half of a run, as its journal says."""
    every = max(1, steps // 10)
    pretrain(replace(recipe, out=str(run), steps=steps, machine=replace(recipe.machine, log_every=every)))
    rows = read_journal(run)
    rows = rows[len(rows) // 2 :]
    return statistics.median(row["pairs_per_s"] for row in rows), statistics.median(row["waiting"] for row in rows)


def write_tiles(folder: Path, count: int) -> Path:
    """So many JPEG files of made-up tissue, half a micrometre a pixel."""
    folder.mkdir()
    for number in range(count):
        picture = Image.fromarray(phantom_tile(number % 16, number % 16, PX, 0.5).image)
        picture.save(folder / f"{number:04}.jpg", quality=90, subsampling=0)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of JPEG tiles (default: made-up tissue)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument(
        "--precision", default="32", choices=["32", "bf16-mixed"], help="of ours; the plain one's is 32"
    )
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--plain-steps", type=int, default=20)
    args = parser.parse_args()
    cores = torch.multiprocessing.cpu_count()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_tiles(Path(folder) / "tiles", max(2 * args.batch, 512))
        recipe = plm()
        recipe = replace(
            recipe,
            data=str(data),
            batch=args.batch,
            compile=args.compile,
            precision=args.precision,
            encoder=replace(recipe.encoder, backbone=args.backbone),
            method=replace(recipe.method, norm_group=min(64, args.batch)),
            machine=MachineConfig(workers=cores, save_every=10**6, journals=()),
        )
        index = Index.build(data, Path(folder) / "tiles.arrow")
        files = [Path(index.name(number)) for number in range(len(index))]
        # First the plain one: ours changes how the process keeps memory.
        plain = plain_rate(recipe, files, args.plain_steps, device, cores)
        ours, waiting = our_rate(recipe, args.steps, Path(folder) / "run")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_model()}, {cores} cores"
    print(f"{datetime.date.today().isoformat()}, {where}, torch {torch.__version__}; {' '.join(sys.argv[1:])}\n")
    heads = ["pairs/s ours", "waiting for tiles", "20 million pairs in", "pairs/s plain", "ours / plain"]
    minutes = f"{20e6 / ours / 60:,.0f} min"
    print(grid([heads, [f"{ours:,.1f}", f"{waiting:.1%}", minutes, f"{plain:,.1f}", f"{ours / plain:.2f}"]], left=0))


if __name__ == "__main__":
    main()
