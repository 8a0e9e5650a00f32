"""From slides and a few annotated glands to glands in QuPath, on real tissue: `python benchmarks/journey.py`.

GlaS has images, no slides. Here each of its 16 patients becomes one: a pyramidal TIFF at 0.62 micrometres per pixel
with all of the patient's images on white glass. Of eight patients one image each is annotated as QuPath exports it.
Then `colocate start` does all the rest, and what it finds on the other eight patients is judged by their masks, which
it never saw. (Their images are among the tiles of the pretraining, as the unlabelled slides of a lab are.)
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.race.arms import LITE0, imagenet_weights
from colocate.base.shapes import read_geojson
from colocate.datasets import glas
from colocate.datasets.writer import Draft
from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.family import Record
from colocate.evaluation.metrics.objects import Objects
from colocate.prediction.image import Objects as Found
from colocate.training.recipe import Recipe
from colocate.training.recipes import colocate_continue
from tests.documented import write_outlines
from tests.phantom_slide import write_pyramid

GAP_PX, ROW = 128, 3


@dataclass(frozen=True)
class Placed:
    """An image of a patient on the patient's slide."""

    draft: Draft
    top: int
    left: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in the slide's pixels."""
        height, width = self.draft.mask.shape
        return self.left, self.top, self.left + width, self.top + height


def write_slide(path: Path, drafts: Sequence[Draft]) -> list[Placed]:
    """A slide with all images of a patient, and where they lie on it."""
    high, wide = (max(draft.mask.shape[axis] for draft in drafts) + GAP_PX for axis in (0, 1))
    placed = [Placed(one, GAP_PX + n // ROW * high, GAP_PX + n % ROW * wide) for n, one in enumerate(drafts)]
    glass = np.full((GAP_PX + math.ceil(len(drafts) / ROW) * high, GAP_PX + ROW * wide, 3), 243, np.uint8)
    for one in placed:
        assert isinstance(one.draft.image, Path)
        left, top, right, bottom = one.box
        glass[top:bottom, left:right] = np.asarray(Image.open(one.draft.image).convert("RGB"))
    write_pyramid(path, glass, glas.MPP, tile=(256, 256), compression="jpeg", compressionargs={"level": 90})
    return placed


def annotate(path: Path, placed: Placed) -> int:
    """The glands of an image as QuPath exports them, and the region in which all are outlined; returns how many."""
    left, top, right, bottom = placed.box
    ids = np.zeros((bottom, right), np.int32)
    ids[top:, left:] = placed.draft.mask
    write_outlines(path, ids, region=placed.box)
    return len(np.unique(ids)) - 1


def judge(found: Path, images: Sequence[Placed]) -> tuple[list[Record], list[float]]:
    """The challenge's records of a patient's images, and the Dice of all glands together on each, in percent."""
    shapes = [one.shape for one in read_geojson(found)]
    tree, records, dice = shapely.STRtree(shapes), [], []
    for one in images:
        here = [shapes[place] for place in tree.query(shapely.box(*one.box))]
        moved = [shapely.transform(shape, lambda points, one=one: points - (one.left, one.top)) for shape in here]
        labels = Found(moved, [""] * len(moved), [1.0] * len(moved)).labels(*one.draft.mask.shape)
        ids = torch.from_numpy(labels)
        records.append(FAMILIES["glas"].record(Objects.of_ids(one.draft.mask), Objects.of_ids(ids)))
        true, seen = one.draft.mask > 0, ids > 0
        dice.append(float(200 * (true & seen).sum() / (true.sum() + seen.sum()).clamp(min=1)))
    return records, dice


def from_imagenet() -> Recipe:
    """`colocate-continue` from EfficientNet-Lite0's ImageNet weights, as in the race: `--recipe` names it."""
    recipe = colocate_continue()
    weights = imagenet_weights(Path("carry/race/imagenet.safetensors").absolute())
    encoder = replace(recipe.encoder, backbone=LITE0, init=str(weights))
    return replace(recipe, encoder=encoder, views=replace(recipe.views, mean=(0.5,) * 3, std=(0.5,) * 3))


def main(
    data: Path = Path("../shared/data/glas"),
    out: Path = Path("carry/journey"),
    hours: float = 0.5,
    recipe: str = "colocate",
) -> None:
    """Make the slides, start the journey, and judge what it finds.

    Args:
        data: GlaS as released.
        out: The folder for everything.
        hours: Longest time of the pretraining.
        recipe: How to pretrain; benchmarks/journey.py:from_imagenet continues from ImageNet's weights.
    """
    patients: dict[str, list[Draft]] = defaultdict(list)
    for draft in glas.drafts(data)[1]:
        patients[draft.source.partition(":")[2]].append(draft)
    names = sorted(patients, key=int)
    slides = {name: write_slide(out / "slides" / f"patient-{name}.tif", patients[name]) for name in names}
    annotated = names[::2]
    count = sum(annotate(out / "annotations" / f"patient-{name}.geojson", slides[name][0]) for name in annotated)
    print(f"{len(names)} slides, {count} glands outlined in {len(annotated)} regions", flush=True)
    began = time.perf_counter()
    words = ["start", out / "slides", "--labels", out / "annotations", "--out", out / "out", "--hours", hours]
    words += ["--recipe", recipe]
    subprocess.run([sys.executable, "-m", "colocate", *map(str, words)], check=True)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes from slides to GeoJSON")
    unseen = [name for name in names if name not in annotated]
    judged = [judge(out / "out" / "objects" / f"patient-{name}.geojson", slides[name]) for name in unseen]
    records = [one for of_patient, _ in judged for one in of_patient]
    dice = [value for _, values in judged for value in values]
    scores = FAMILIES["glas"].scores(records)
    print(f"{len(unseen)} patients without annotations, {len(records)} images: Dice {np.mean(dice):.1f}", scores)


if __name__ == "__main__":
    tyro.cli(main)
