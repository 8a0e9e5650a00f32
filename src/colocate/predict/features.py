"""Features of slides: what a frozen backbone sees in each tile of tissue, or in each of its cells."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, final

import h5py
import numpy as np
import torch
import tyro
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image
from rich.console import Console
from torch import nn

from colocate.base.errors import TileError, UserError
from colocate.base.files import light_png, write_atomically
from colocate.base.text import changes
from colocate.data.loader import spaced
from colocate.evaluate.candidates import Candidate
from colocate.models.backbones import Backbone
from colocate.predict.predictor import DeviceConfig, read_regions
from colocate.pretrain.probes import cell_features
from colocate.report.page import principal_components
from colocate.slides.listing import Listed
from colocate.slides.one_slide import TilingConfig, places
from colocate.slides.runner import Meter, Quarantine, Tally, for_each_slide
from colocate.slides.slide import Slide, check_mpp
from colocate.slides.tissue import find_tissue

SIDES_PX = (790, 640, 520, 420, 320)  # of the slide's longer side; the largest whose PNG is light
GAP_PX = 10
GREY = (200, 200, 200)  # where there are no features
MOST = 20_000  # rows that components are fitted to
ROWS = 8192  # read at once


def draw_components(features: Path, slide: Slide, out: Path) -> None:
    """Write a PNG of at most 1,600 px and 300 kB: the slide, and the components of its features in an HDF5 file."""
    with h5py.File(features) as file:
        lattice, pitch = _lattice(file, slide)
    packed = light_png(_page(slide, lattice, pitch, side) for side in SIDES_PX)
    write_atomically(out, lambda file: file.write(packed))


def _page(slide: Slide, lattice: UInt8[np.ndarray, "rows columns 3"], pitch: float, side: int) -> Image.Image:
    """The slide, `side` px at its longer side, and its features beside it."""
    thumbnail = Image.fromarray(slide.thumbnail(side))
    width, height = thumbnail.size
    # A pixel of the lattice is a feature: squares where they are large, means where there are many a pixel.
    how = Image.Resampling.BOX if max(lattice.shape[:2]) > side else Image.Resampling.NEAREST
    box = (0, 0, slide.width / pitch, slide.height / pitch)
    page = Image.new("RGB", (2 * width + GAP_PX, height), "white")
    page.paste(thumbnail, (0, 0))
    page.paste(Image.fromarray(lattice).resize((width, height), how, box), (width + GAP_PX, 0))
    return page.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)


def _lattice(file: h5py.File, slide: Slide) -> tuple[UInt8[np.ndarray, "rows columns 3"], float]:
    """A pixel for each feature that the slide has room for, grey where there is none; and level0 pixels a pixel."""
    coords, stored = file["coords"], file["features"]
    assert isinstance(coords, h5py.Dataset) and isinstance(stored, h5py.Dataset)
    features = np.memmap(file.filename, "<f4", "r", stored.id.get_offset(), stored.shape)
    components = principal_components(torch.from_numpy(features[spaced(range(len(features)), MOST)]))
    facts: Any = coords.attrs
    pitch = facts["patch_size"] * facts["mpp"] / slide.mpp
    shape = (math.ceil(slide.height / pitch), math.ceil(slide.width / pitch))
    lattice = np.full((*shape, 3), GREY, np.uint8)
    for start in range(0, len(features), ROWS):
        x, y = np.rint(coords[start : start + ROWS] / pitch).astype(int).T
        colours = components.colours(torch.from_numpy(features[start : start + ROWS].copy())).numpy()
        lattice[y, x] = (colours * 255).round()
    return lattice, pitch


Attributes = Mapping[str, Any]
SETTINGS = "settings"


@final
class FeatureFile:
    """Where a slide's features are written: float32 (n, channels), with the int64 (n, 2) places of each.

    HDF5 only lays the file out, the numbers are written to their places by hand: on a full disk HDF5 raises no error
    that could be handled, but ends the process (h5py issue 914).
    """

    def __init__(self, path: Path, settings: Attributes) -> None:
        self.path = path
        self.settings = json.dumps(settings, sort_keys=True)
        """All that decides the numbers."""

    def written(self) -> bool:
        """Whether the file is there.

        Raises:
            UserError: it holds something else, or features of other settings.
        """
        if not self.path.exists():
            return False
        try:
            with h5py.File(self.path) as file:
                stored: Any = json.loads(str(file.attrs[SETTINGS]))
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.path} is no file of colocate's features: choose another --out") from error
        if changed := changes(stored, json.loads(self.settings)):
            raise UserError(f"{self.path} holds features of other settings ({changed}): choose another --out")
        return True

    def write(
        self,
        coords: Int64[np.ndarray, "n 2"],
        batches: Iterable[Float32[np.ndarray, "_ c"]],
        channels: int,
        of_coords: Attributes,
        of_features: Attributes,
        finish: Callable[[Path], object],
    ) -> None:
        """Write the file as the batches come, whole or not at all.

        coords: x and y in level0 pixels. `finish` gets the file's temporary place before it takes its name.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """

        def content(file: Any) -> None:
            path = Path(file.name)
            places = self._lay_out(path, len(coords), channels, of_coords, of_features)
            file.seek(places["coords"])
            file.write(coords.astype("<i8").tobytes())
            file.seek(places["features"])
            rows = 0
            for batch in batches:
                file.write(batch.astype("<f4").tobytes())
                rows += len(batch)
            if rows != len(coords):
                raise ValueError(f"{rows} features for {len(coords)} places")
            file.flush()
            finish(path)

        write_atomically(self.path, content)

    def _lay_out(
        self, path: Path, rows: int, channels: int, of_coords: Attributes, of_features: Attributes
    ) -> dict[str, int]:
        """Make a file with room for everything; returns at which byte each data set begins."""
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with h5py.File(path, "w") as file:
            file.attrs[SETTINGS] = self.settings
            places = {}
            for name, shape, kind, attributes in (
                ("features", (rows, channels), "<f4", of_features),
                ("coords", (rows, 2), "<i8", of_coords),
            ):
                dataset = file.create_dataset(name, shape, kind, dcpl=early)
                dataset.attrs.update(attributes)
                places[name] = dataset.id.get_offset()
        return places


VERSION = 2  # of features; to be raised when the same settings would give other numbers
NEAR = 1.25  # a backbone may see tissue at a resolution so many times finer or coarser than its own without a note


@dataclass(frozen=True)
class FeatureConfig:
    """What is taken from slides, and how."""

    of: Literal["tiles", "cells"] = "tiles"
    """A vector for each tile (the mean of its cells), or one for each cell of the backbone's grid."""
    mpp: float | None = None
    """Micrometres per pixel at which the backbone sees slides (default: that of the tiles it was pretrained on)."""
    size: int = 256
    """Side of a tile in px, a whole number of cells."""
    min_tissue: float = 0.5
    """Least share of a tile that is tissue."""
    output_stride: int | None = None
    """Pixels a cell (default: as the backbone was pretrained)."""
    device: Annotated[DeviceConfig, tyro.conf.arg(name="")] = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.mpp is not None:
            check_mpp(self.mpp, "--mpp")


def features(candidate: Candidate, slides: Sequence[Listed], out: Path, config: FeatureConfig) -> Tally:
    """Write OUT/SLIDE.h5 and its picture OUT/SLIDE.png for every slide that has none; OUT/failed.csv lists failures.

    Raises:
        UserError: settings that do not fit the backbone or the features that are there; a full disk.
    """
    mpp = config.mpp or candidate.mpp
    if mpp is None:
        raise UserError(f"{candidate.origin} does not say at which resolution it sees tissue: give --mpp")
    tiling = TilingConfig(mpp, config.size, min_tissue=config.min_tissue)
    if candidate.mpp and not 1 / NEAR <= mpp / candidate.mpp <= NEAR:
        told = f"{candidate.label} was pretrained at {candidate.mpp:g} micrometres per pixel, not at {mpp:g}"
        Console(stderr=True, highlight=False).print(f"note: {told}", soft_wrap=True, markup=False)
    asked = config.output_stride
    backbone = candidate.build(0, asked or candidate.output_stride, None if asked else candidate.cell_stride)
    if config.size % backbone.stride:
        near = max(1, round(config.size / backbone.stride)) * backbone.stride
        raise UserError(f"--size {config.size} is no whole number of cells of {backbone.stride} px: give {near}")
    backbone.check(config.size, "--size")
    network = config.device.launch().setup_module(backbone)
    extractor = _Extractor(candidate, config, tiling, out, backbone, network)
    return for_each_slide(
        slides,
        lambda listed: extractor.file(listed).written(),
        extractor.write,
        Quarantine(out / "failed.csv"),
        "tile",
    )


@final
@dataclass(frozen=True)
class _Extractor:
    candidate: Candidate
    config: FeatureConfig
    tiling: TilingConfig
    out: Path
    backbone: Backbone
    network: nn.Module
    """The backbone on its device."""

    def file(self, listed: Listed) -> FeatureFile:
        """Where a slide's features belong, and what decides them."""
        settings = {
            "version": VERSION,
            "of": self.config.of,
            "mpp": self.tiling.mpp,
            "size": self.tiling.size,
            "min_tissue": self.tiling.min_tissue,
            "cell": self.backbone.stride,
            "precision": self.config.device.precision,
            "architecture": self.candidate.architecture,
            "backbone": self.candidate.fingerprint,
            "mean": self.candidate.mean,
            "std": self.candidate.std,
        } | listed.identity()
        return FeatureFile(self.out / f"{listed.name}.h5", settings)

    def write(self, listed: Listed, meter: Meter) -> None:
        """One slide. Raises TileError where it is damaged, too coarse or without tissue, UserError on a full disk."""
        slide = listed.open()
        found = places(slide, find_tissue(slide, listed.mask), self.tiling)
        slide.check_shows(found.mpp)
        if not len(found.x):
            raise TileError(f"no tile of {slide.path} holds enough tissue: give a lower --min-tissue, or a mask of it")
        meter.begin(len(found.x))
        coords, side = np.stack([found.x, found.y], 1).astype(np.int64), self.tiling.size
        batches = self._vectors(slide, coords, found.mpp, meter)
        if self.config.of == "cells":
            grid, side = self.tiling.size // self.backbone.stride, self.backbone.stride
            coords = cell_places(coords, grid, found.side / grid)
        of_coords = {
            "name": listed.name,
            "patch_size": side,
            "patch_size_level0": round(side * found.mpp / slide.mpp),
            "overlap": 0,
            "mpp": found.mpp,
            "level0_mpp": slide.mpp,
            "level0_width": slide.width,
            "level0_height": slide.height,
        }
        of_features = {
            "of": self.config.of,
            "tile_size": self.tiling.size,
            "backbone": self.candidate.label,
            "architecture": self.candidate.architecture,
            "fingerprint": self.candidate.fingerprint,
            "origin": self.candidate.origin,
            "mean": self.candidate.mean,
            "std": self.candidate.std,
            "precision": self.config.device.precision,
            "colocate": version("colocate"),
        }
        picture = self.out / f"{listed.name}.png"
        self.file(listed).write(
            coords,
            batches,
            self.backbone.channels,
            of_coords,
            of_features,
            lambda written: draw_components(written, slide, picture),
        )

    def _vectors(
        self, slide: Slide, tiles: Int64[np.ndarray, "n 2"], mpp: float, meter: Meter
    ) -> Iterator[Float[np.ndarray, "_ c"]]:
        """Batch after batch: no more than what is read ahead is in memory."""
        batch, size = self.config.device.batch, self.tiling.size
        ahead = read_regions(slide, tiles, size, mpp, batch, self.config.device.readers)
        for images in ahead:
            grids = cell_features(self.network, images, self.candidate.mean, self.candidate.std, batch)
            yield (grids.mean((1, 2)) if self.config.of == "tiles" else grids.flatten(0, 2)).numpy()
            meter.advance(len(images))


def cell_places(tiles: Int64[np.ndarray, "n 2"], grid: int, pitch: float) -> Int64[np.ndarray, "m 2"]:
    """The top left corners of tiles' grid x grid cells, row by row in each tile; `pitch`: level0 pixels a cell.

    >>> cell_places(np.array([[100, 0]]), grid=2, pitch=3.4).tolist()
    [[100, 0], [103, 0], [100, 3], [103, 3]]
    """
    y, x = np.mgrid[:grid, :grid].reshape(2, 1, -1) * pitch
    return np.rint(np.stack([tiles[:, :1] + x, tiles[:, 1:] + y], -1)).astype(np.int64).reshape(-1, 2)
