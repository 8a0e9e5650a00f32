"""What reads files of other people: for each kind a small valid set of files, and the call that reads all of it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tifffile
from PIL import Image
from pyarrow import parquet

from colocate.data.decode import decode
from colocate.data.index import Index
from colocate.datasets.files import read_mask
from colocate.datasets.labelled import Labelled
from colocate.datasets.prepare import converter
from colocate.datasets.writer import write
from colocate.evaluation.results import read_result
from colocate.evaluation.saved import load_model
from colocate.models.backbones import Backbone, load_backbone
from colocate.slides.listing import find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import tile
from colocate.slides.tissue import find_tissue
from colocate.training.checkpoint import load_checkpoint, save_checkpoint, write_backbone
from colocate.training.journal import read_journal
from colocate.training.recipe import read_recipe, to_json
from tests.evaluate.made import write_result
from tests.evaluate.test_saved import SEGMENTER, evaluated
from tests.evaluate.tissue import write_tissue
from tests.phantom_slide import painted, tissue_slide, write_pyramid
from tests.prepare.test_geojson import feature, put, square
from tests.prepare.test_monuseg import TEST, TRAIN, xml
from tests.tiny import tiny_recipe, write_tiles


class Reader(NamedTuple):
    make: Callable[[Path], object]
    """Fills a folder with valid files."""
    read: Callable[[Path], object]
    """Reads all of the folder; raises UserError or TileError where it cannot."""
    mutated: str = "*"
    """Which of the files are mutated."""
    exact: bool = False
    """Whether colocate keeps sums of these files, so that an answer must be that of the valid ones."""


def _pictures(folder: Path) -> None:
    pixels = Image.fromarray(painted(24, 20))
    for ending in ("png", "jpg", "bmp", "webp", "tif"):
        pixels.save(folder / f"rgb.{ending}")
    pixels.quantize(8).save(folder / "palette.png")
    pixels.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(pixels)[:, :, 0].astype(np.uint16) * 200).save(folder / "deep.png")
    tifffile.imwrite(folder / "lzw.tif", painted(24, 20), compression="lzw", predictor=2)


def _each(read: Callable[[Path], object]) -> Callable[[Path], None]:
    """Read every file; one that cannot be read does not hide the others."""

    def all_of(folder: Path) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                read(file)

    return all_of


def _slides(folder: Path) -> None:
    pixels = tissue_slide(256)[0]
    write_pyramid(folder / "jpeg.svs", pixels, 0.5, compression="jpeg", tile=(64, 64))
    write_pyramid(folder / "plain.tif", pixels, 0.5, tile=(64, 64))
    tifffile.imwrite(
        folder / "whole.ome.tif", pixels, tile=(64, 64), metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    )
    Image.fromarray(pixels).save(folder / "plain.png")


def _look(file: Path) -> None:
    slide = Slide.open(file, 0.5)
    find_tissue(slide)
    slide.read(0, 0, 64, 64, slide.mpp)
    slide.read(-10, 5, 32, 32, slide.mpp * 2)


def _cut(manifest_only: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_pyramid(folder / "slides" / "a.tif", tissue_slide(256)[0], 1.0, tile=(64, 64))
        config = TilingConfig(mpp=1.0, size=64, min_sharpness=0)
        tile(find_slides([folder / "slides"], None), folder / "tiles", config, manifest_only=manifest_only, workers=1)

    return make


def _all_tiles(data: Path) -> object:
    return _read(Index.build(data, data.parent / f".{data.name}.index.arrow"))


def _read(index: Index) -> object:
    tiles = [(index.name(number), int(index.read(number).sum())) for number in range(min(len(index), 20))]
    names = [name.rpartition("/")[2] for name, _ in tiles]
    totals = [total for _, total in tiles]
    return repr((names, totals, index.mpp.tolist(), index.sources, index.fingerprint))  # nan is equal to nan


def _tar(folder: Path) -> None:
    tiles = write_tiles(folder / "tiles", 4, 16)
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for path in sorted(tiles.iterdir()):
            shard.add(path, path.name)
            note = json.dumps({"mpp": 0.5, "source": "a"}).encode()
            member = tarfile.TarInfo(path.with_suffix(".json").name)
            member.size = len(note)
            shard.addfile(member, io.BytesIO(note))
    shutil.rmtree(tiles)


def _table(folder: Path) -> None:
    write_tiles(folder / "tiles", 4, 16)
    rows = [(f"tiles/{n:02}.png", 0.5, f"case {n}") for n in range(4)]
    lines = ["path,mpp,source", *(",".join(map(str, row)) for row in rows)]
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")
    names = ("path", "mpp", "source")
    parquet.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), folder / "tiles.parquet")


def _index(folder: Path) -> None:
    Index.build(write_tiles(folder / "tiles", 4, 16), folder / "tiles.arrow")


def _outlines(folder: Path) -> None:
    Image.fromarray(painted(50, 40)).save(folder / "a0.png")
    Image.fromarray(painted(50, 40)).save(folder / "a1.png")
    put(folder / "a0.geojson", feature(square(2, 2), square(4, 4, 3)), feature(square(20, 20)))
    put(folder / "a1.geojson", feature([square(2, 2)], [square(20, 20)], kind="MultiPolygon"))


def _coco(folder: Path) -> None:
    for name in "ab":
        Image.fromarray(painted(50, 40)).save(folder / f"{name}.png")
    counts = {"size": [40, 50], "counts": [100, 20, 20, 20, 1840]}
    objects = [{"segmentation": [[2, 2, 12, 2, 12, 12]]}, {"segmentation": counts, "iscrowd": 0}]
    document = {
        "images": [{"id": n, "file_name": f"{'ab'[n]}.png", "width": 50, "height": 40} for n in (0, 1)],
        "categories": [{"id": 1, "name": "gland"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1} | one for n, one in enumerate(objects)],
    }
    (folder / "set.json").write_text(json.dumps(document))


def _xml(folder: Path) -> None:
    place = folder / "MoNuSegTestData"
    place.mkdir()
    for name in (*TRAIN, *TEST):
        tifffile.imwrite(place / f"{name}.tif", painted(50, 40))
        (place / f"{name}.xml").write_text(xml([(3, 4), (13, 4), (13, 14)], [(30, 20), (40, 20), (40, 30)]))


def _prepare(kind: str, src: str = ".", **options: object) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        out = folder / ".out"
        shutil.rmtree(out, ignore_errors=True)
        write(out, *converter(kind)(folder / src, **options), partial=True)

    return read


def _masks(folder: Path) -> None:
    ids = np.arange(20 * 24).reshape(20, 24) // 60
    Image.fromarray(ids.astype(np.uint8)).save(folder / "grey.png")
    Image.fromarray(ids.astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(ids.astype(np.uint8)).save(folder / "grey.bmp")
    tifffile.imwrite(folder / "deep.tif", ids.astype(np.uint16))


def _labelled(folder: Path) -> None:
    data = Labelled.open(folder / "set")
    for number in range(len(data)):
        data.image(number)
        data.mask(number)
    data.parts(next(iter(data.schemes), ""))


def _backbone(folder: Path) -> None:
    backbone = Backbone("test_resnet")
    write_backbone(folder, backbone, {"mean": [0.5] * 3, "std": [0.2] * 3, "mpp": 1.0, "recipe": {}, "steps": 1})


def _run_files(folder: Path) -> None:
    recipe = tiny_recipe(folder / "tiles", folder)
    (folder / "recipe.json").write_text(to_json(replace(recipe, hold_out=("source=a",))))
    rows = ["step,loss,dense,grad_norm", *(f"{step},1.5,0.25,3" for step in range(1, 6))]
    (folder / "journal.csv").write_text("\n".join(rows) + "\n")


def _weights(folder: Path) -> list[float]:
    return [float(tensor.double().sum()) for tensor in load_backbone(folder).state_dict().values()]


def _state(folder: Path) -> str:
    return repr(load_checkpoint(folder / "step000000003.pt"))


def _checkpoint(folder: Path) -> None:
    import torch

    state = {"step": 3, "recipe": "{}", "method": {"w": torch.arange(9.0)}, "optimizer": {"lr": 0.1}}
    save_checkpoint(folder, 3, state, keep=1)


def _kept(folder: Path) -> None:
    data = write_tissue(folder / ".set")
    shutil.copytree(evaluated(SEGMENTER, data, folder / ".result"), folder / "model")


READERS: dict[str, Reader] = {
    "picture": Reader(_pictures, _each(lambda file: decode(file.read_bytes(), file.name))),
    "slide": Reader(_slides, _each(_look)),
    "tar": Reader(_tar, lambda folder: _all_tiles(folder / "shard.tar")),
    "shards": Reader(_cut(False), lambda folder: _all_tiles(folder / "tiles"), "tiles/shards/*", exact=True),
    "manifest": Reader(_cut(True), lambda folder: _all_tiles(folder / "tiles"), "**/*.parquet"),
    "table": Reader(_table, lambda folder: _all_tiles(folder / "tiles.csv"), "*.csv"),
    "parquet": Reader(_table, lambda folder: _all_tiles(folder / "tiles.parquet"), "*.parquet"),
    "index": Reader(_index, lambda folder: _read(Index.open(folder / "tiles.arrow")), "*.arrow", exact=True),
    "geojson": Reader(_outlines, _prepare("geojson", mpp=0.5), "*.geojson"),
    "coco": Reader(_coco, _prepare("coco", "set.json"), "*.json"),
    "xml": Reader(_xml, _prepare("monuseg", partial=True), "**/*.xml"),
    "mask": Reader(_masks, _each(read_mask)),
    "labelled": Reader(lambda folder: write_tissue(folder / "set"), _labelled, "**/*"),
    "backbone": Reader(_backbone, load_backbone, "*.json"),
    "weights": Reader(_backbone, _weights, "*.safetensors", exact=True),
    "recipe": Reader(_run_files, lambda folder: read_recipe(folder / "recipe.json"), "*.json"),
    "journal": Reader(_run_files, read_journal, "*.csv"),
    "checkpoint": Reader(_checkpoint, _state, exact=True),
    "result": Reader(
        lambda folder: write_result(folder),
        lambda folder: [read_result(file) for file in folder.rglob("*.json")],
        "**/*.json",
    ),
    "model": Reader(_kept, lambda folder: load_model(folder / "model"), "model/*"),
}
