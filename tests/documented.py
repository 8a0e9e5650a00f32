"""The blocks of code on the pages, and a small world in which they run: slides, tiles, labels, a run, results."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from PIL import Image

from colocate.base.shapes import outline
from colocate.cli.main import main
from colocate.data.phantom import phantom_tile
from colocate.training.loop import pretrain
from tests.evaluate.tissue import write_tissue
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.prepare.releases import write_glas
from tests.tiny import tiny_recipe

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("benchmarks/**/*.md"))]
FENCED = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w+)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    .*\n)+", re.M)


class Block(NamedTuple):
    """A block of code; marks are words in comments above it.

    `needs: NAME ...` it runs where these can be imported; `not run: WHY` it is only read; `file: NAME` it is saved.
    """

    page: str
    language: str
    text: str
    marks: dict[str, str]

    def lacking(self) -> list[str]:
        """What it needs and is not there."""
        return [name for name in self.marks.get("needs", "").split() if not there(name)]


def there(name: str) -> bool:
    """Whether a module, or an attribute of one, exists."""
    try:
        if find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass
    module, _, attribute = name.rpartition(".")
    return bool(module) and hasattr(__import__(module), attribute)


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order: fenced ones with a language, and indented ones as shell."""
    name, text = str(page.relative_to(ROOT)), page.read_text()
    for comments, language, code in FENCED.findall(text):
        marks = dict(re.findall(r"<!-- ([\w ]+): (.*) -->", comments))
        yield Block(name, language, code, marks)
    for code in INDENTED.findall(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        yield Block(name, "sh", re.sub("^    ", "", code, flags=re.M), {})


def commands(block: Block) -> Iterator[str]:
    """The words of each `colocate ...` of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"; (?:do )?|&& ", line.partition(" #")[0]):
            if found := re.match(r"\s*(?:srun |\w+=\w+ |\.venv/bin/)*colocate (.+)", part):
                yield re.sub(r"\s+", " ", found[1]).strip()


def make_world(folder: Path) -> Path:
    """Everything that the pages name, in small, under the names that they use."""
    for seed in range(3):
        pixels, glands = tissue_slide(1024, 0.5, seed)
        write_pyramid(folder / "slides" / f"s{seed}.tif", pixels, 0.5)
        write_outlines(folder / "annotations" / f"s{seed}.geojson", glands, region=(256, 256, 768, 768))
    for number in range(16):
        tile = phantom_tile(3, number, 96)
        save(tile.image, folder / "pngs" / f"{number:02}.png")
        save(tile.image, folder / "labelled-masks" / "images" / f"{number:02}.png")
        save(tile.glands.astype(np.uint16), folder / "labelled-masks" / "masks" / f"{number:02}.png")
        save(tile.image, folder / "labelled-classes" / "images" / f"{number:02}.png")
        save((tile.glands > 0).astype(np.uint8), folder / "labelled-classes" / "masks" / f"{number:02}.png")
        save(tile.image, folder / "labelled" / f"{number:02}.png")
        write_outlines(folder / "labelled" / f"{number:02}.geojson", tile.glands)
    write_coco(folder / "ANNOTATIONS.json")
    (folder / "slides.csv").write_text("path,mpp\nslides/s0.tif,1.0\nslides/s1.tif,\n")
    (folder / "my_tissue.py").write_text("def mask(image, mpp):\n    return image.min(-1) < 200\n")
    write_glas(folder / "GlaS")
    write_tissue(folder / "glas")
    shutil.copytree(folder / "glas", folder / "data")
    main(f"tile {folder}/slides {folder}/tiles --mpp 0.5 --size 128 --workers 1".split())
    recipe = tiny_recipe(folder / "tiles", folder / "run", steps=2)
    pretrain(replace(recipe, views=replace(recipe.views, size=96)))
    shutil.copy(folder / "run" / "backbone.safetensors", folder / "weights.safetensors")
    for name in ("moco", "contrast"):
        shutil.copytree(folder / "run", folder / name)
    judged = f"evaluate instances --data {folder}/data --backbone run={folder}/run moco=random --keep-models"
    main(f"{judged} --out {folder}/results {FOUND}".split())
    main(f"features {folder}/run {folder}/slides --out {folder}/features {LOOKING}".split())
    for name, other in (("RUN", "run"), ("DOWNLOADED", "GlaS"), ("few", "results"), ("ANNOTATIONS", "annotations")):
        (folder / name).symlink_to(other)
    return folder


LOOKING = "--accelerator cpu --workers 0 --mpp 0.5 --size 128"
JUDGED = "--accelerator cpu --workers 0 --seeds 1 --architecture test_resnet"
TUNED = f"{JUDGED} --smoke --fit.steps 1 --fit.batch 2"
FOUND = f"{TUNED} --short-side 48 64 --test-short-side 64 --detections 5 --proposals 16 --anchors 64 64 128 256 512"


def save(pixels: np.ndarray, path: Path) -> None:
    """An image file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_outlines(path: Path, ids: np.ndarray, region: tuple[int, int, int, int] | None = None) -> None:
    """Objects as QuPath exports them; and a box in which all are outlined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = [(outline(ids == number), "gland") for number in np.unique(ids)[1:]]
    if region is not None:
        shapes.append((shapely.box(*region), "Region*"))
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shape)),
            "properties": {"classification": {"name": name}},
        }
        for shape, name in shapes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def write_coco(path: Path) -> None:
    """Ten images of one square each."""
    images = [{"id": n, "file_name": f"pngs/{n:02}.png", "height": 96, "width": 96} for n in range(10)]
    square = [8.0, 8.0, 40.0, 8.0, 40.0, 40.0, 8.0, 40.0]
    objects = [
        {"id": n + 1, "image_id": n, "category_id": 1, "segmentation": [square], "area": 1024.0, "iscrowd": 0}
        for n in range(10)
    ]
    text = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "gland"}]}
    path.write_text(json.dumps(text))
