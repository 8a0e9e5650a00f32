"""Predictors that know what the tests have drawn: an object's number stands in the colour of its pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from jaxtyping import Bool, Int32, UInt8
from PIL import Image
from torch import Tensor

from colocate.evaluation.decoders import Segmenter
from colocate.evaluation.metrics.objects import Found
from colocate.evaluation.saved import ModelFacts, SavedModel
from colocate.prediction.outputs import UNSEEN
from colocate.prediction.predictor import Classes, Predictor
from colocate.prediction.settings import DeviceConfig, PredictConfig
from colocate.slides.listing import Listed
from tests.phantom_slide import write_pyramid

CPU = DeviceConfig(batch=3, accelerator="cpu", workers=0)
CONFIG = PredictConfig(window=128, overlap=32, min_area=0, device=CPU)
LIGHT, DARK = (200, 120, 0), (90, 30, 40)  # tissue without and with an object; blue counts from 40 on


def ids_as_tissue(ids: Int32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Pink tissue all over, objects dark with their number (up to 200) in blue."""
    pixels = np.where(ids[..., None] > 0, DARK, LIGHT).astype(np.uint8)
    pixels[..., 2] += ids.astype(np.uint8)
    return pixels


def ids_in(windows: UInt8[Tensor, "b 3 s s"]) -> Int32[Tensor, "b s s"]:
    """The numbers of the objects at each pixel."""
    dark = windows[:, 0] == DARK[0]
    return torch.where(dark, windows[:, 2].int() - DARK[2], 0).to(torch.int32)


def objects(windows: UInt8[Tensor, "b 3 s s"], tissue: Bool[Tensor, "b s s"] | None = None) -> Sequence[Found]:
    """Each object in a window, its class 1 or 2 and its score by its number."""
    found = []
    for ids in ids_in(windows):
        numbers = [int(number) for number in ids.unique() if number]
        local = torch.zeros_like(ids)
        for i, number in enumerate(numbers, start=1):
            local[ids == number] = i
        found.append(Found(local, [1 + number % 2 for number in numbers], [1 - number / 400 for number in numbers]))
    return found


def classes(windows: UInt8[Tensor, "b 3 s s"], tissue: Bool[Tensor, "b s s"] | None = None) -> Sequence[Classes]:
    """Class 1 and 2 by the objects' numbers, 0 between them; the confidence says the class too."""
    found = []
    for place, ids in enumerate(ids_in(windows)):
        its = torch.where(ids > 0, 1 + ids % 2, 0).to(torch.uint8)
        found.append(Classes(its if tissue is None else its.masked_fill(~tissue[place], UNSEEN), 200 + its))
    return found


FINDER = Predictor("instances", ("even", "odd"), 1.0, "objects", {}, objects)
MAPPER = Predictor("semantics", ("background", "even", "odd", "never"), 1.0, "classes", {}, classes, ignored=3)


def slide_of(folder: Path, ids: Int32[np.ndarray, "h w"], mpp: float = 1.0, name: str = "slide") -> Listed:
    """A slide of numbered objects, all of it tissue by the user's word."""
    path = write_pyramid(folder / f"{name}.tif", ids_as_tissue(ids), mpp, levels=2)
    Image.fromarray(np.full_like(ids[::25, ::25], 255, np.uint8)).save(folder / "all.png")
    return Listed(name, path, mask=folder / "all.png")


def discs(height: int, width: int, pitch: int = 50, radius: int = 19) -> Int32[np.ndarray, "h w"]:
    """Numbered discs all over, and a bar through the middle that is longer than a window."""
    rows, columns = np.mgrid[:height, :width]
    number = 1 + rows // pitch * (width // pitch + 1) + columns // pitch
    near = (rows % pitch - pitch // 2) ** 2 + (columns % pitch - pitch // 2) ** 2 < radius**2
    ids = np.where(near, number, 0).astype(np.int32)
    ids[height // 2 - 6 : height // 2 + 6, 10 : width - 10] = 190
    assert number.max() < 190
    return ids


def masked(slide: Listed, mask: np.ndarray) -> Listed:
    """The slide, of which only this is tissue."""
    path = slide.path.with_name("mask.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return replace(slide, mask=path)


def torn(path: Path, tile: int) -> None:
    """Fill a tile of a slide with zeros, which no codec unpacks."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
    with path.open("r+b") as slide:
        slide.seek(page.dataoffsets[tile])
        slide.write(bytes(page.databytecounts[tile]))


def drawn_in(out: Path) -> list[dict[str, Any]]:
    """The features of a slide's GeoJSON file."""
    return json.loads((out / "slide.geojson").read_text())["features"]


def kept(network: Any, names: tuple[str, ...] = ("background", "a", "b"), mpp: float | None = 1.0) -> SavedModel:
    """A network as `colocate evaluate --keep-models` keeps it."""
    task, half = "semantics" if isinstance(network, Segmenter) else "instances", (0.5, 0.5, 0.5)
    data = {"name": "discs", "fingerprint": "", "licence": ""}
    facts = ModelFacts(1, task, network.config, names, True, None, "test_resnet", 32, half, half, mpp, data, {})
    return SavedModel(network, facts, "network")
