"""From slides and a few annotated glands to glands in QuPath, on real tissue: `python benchmarks/journey.py`.

GlaS has images, no slides. Here each of its 16 patients becomes one: a pyramidal TIFF at 0.62 micrometres per pixel
with all of the patient's images on white glass. Of eight patients one image each is annotated as QuPath exports it.
Then `colocate start` does all the rest, and what it finds on the other eight patients is judged by their masks, which
it never saw. (Their images are among the tiles of the pretraining, as the unlabelled slides of a lab are.)
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
import tifffile
import torch
import tyro
from PIL import Image

from colocate.base.shapes import outline, rasterise, read_geojson
from colocate.datasets import glas
from colocate.datasets.qupath import REGION
from colocate.datasets.writer import Draft
from colocate.evaluation.metrics.family import Record
from colocate.evaluation.metrics.glas import pack, record
from colocate.evaluation.metrics.objects import Objects

GAP_PX, ROW = 128, 3
ANNOTATED = 8  # patients, one image each


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in range(3):
            step = 2**level
            density = (1e4 / glas.MPP / step,) * 2
            pixels = np.asarray(Image.fromarray(glass).reduce(step))
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                resolution=density,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
            )
    return placed


def annotate(path: Path, placed: Placed) -> int:
    """The glands of an image as QuPath exports them, and the region in which all are outlined; returns how many."""
    mask = placed.draft.mask.numpy()
    glands = [outline(mask == number, placed.top, placed.left) for number in np.unique(mask[mask > 0])]
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shape)),
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for shape, name in [(shapely.box(*placed.box), REGION), *((gland, "Gland") for gland in glands)]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return len(glands)


def judge(found: Path, images: Sequence[Placed]) -> tuple[list[Record], list[float]]:
    """The challenge's records of a patient's images, and the Dice of all glands together on each, in percent."""
    shapes = [one.shape for one in read_geojson(found)]
    tree, records, dice = shapely.STRtree(shapes), [], []
    for one in images:
        ids = torch.zeros(one.draft.mask.shape, dtype=torch.int32)
        height, width = ids.shape
        for number, place in enumerate(tree.query(shapely.box(*one.box)).tolist(), start=1):
            moved = shapely.transform(shapes[place], lambda points, one=one: points - (one.left, one.top))
            patch = rasterise(moved, height, width)
            part = ids[patch.top : patch.top + patch.mask.shape[0], patch.left : patch.left + patch.mask.shape[1]]
            part[torch.from_numpy(patch.mask)] = number
        records.append(record(Objects.of_ids(one.draft.mask), Objects.of_ids(ids)))
        true, seen = one.draft.mask > 0, ids > 0
        dice.append(float(200 * (true & seen).sum() / (true.sum() + seen.sum()).clamp(min=1)))
    return records, dice


def main(data: Path = Path("../shared/data/glas"), out: Path = Path("carry/journey"), hours: float = 0.5) -> None:
    """Make the slides, start the journey, and judge what it finds.

    Args:
        data: GlaS as released.
        out: The folder for everything.
        hours: Longest time of the pretraining.
    """
    patients: dict[str, list[Draft]] = defaultdict(list)
    for draft in glas.drafts(data)[1]:
        patients[draft.source.partition(":")[2]].append(draft)
    names = sorted(patients, key=int)
    slides = {name: write_slide(out / "slides" / f"patient-{name}.tif", patients[name]) for name in names}
    annotated = names[::2][:ANNOTATED]
    count = sum(annotate(out / "annotations" / f"patient-{name}.geojson", slides[name][0]) for name in annotated)
    print(f"{len(names)} slides, {count} glands outlined in {len(annotated)} regions", flush=True)
    began = time.perf_counter()
    words = ["start", out / "slides", "--labels", out / "annotations", "--out", out / "out", "--hours", str(hours)]
    subprocess.run([sys.executable, "-m", "colocate", *map(str, words)], check=True)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes from slides to GeoJSON")
    unseen = [name for name in names if name not in annotated]
    judged = [judge(out / "out" / "objects" / f"patient-{name}.geojson", slides[name]) for name in unseen]
    records = [one for of_patient, _ in judged for one in of_patient]
    dice = [value for _, values in judged for value in values]
    scores = {name: float(value[0]) for name, value in pack(records)(np.ones((1, len(records)), np.int64)).items()}
    print(f"{len(unseen)} patients without annotations, {len(records)} images: Dice {np.mean(dice):.1f}", scores)


if __name__ == "__main__":
    tyro.cli(main)
