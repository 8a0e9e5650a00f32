"""Features of slides: what a frozen backbone sees in each tile of tissue, or in each of its cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, final

import numpy as np
import tyro
from jaxtyping import Float, Int64
from rich.console import Console
from torch import nn

from ..backbones import Backbone
from ..errors import TileError, UserError
from ..evaluate.candidates import Candidate
from ..probes.nearest import cell_features
from ..slide import Slide, check_mpp
from ..tiling.config import TilingConfig
from ..tiling.listing import Listed
from ..tiling.meter import Meter
from ..tiling.one_slide import places
from ..tiling.quarantine import Quarantine
from ..tiling.tissue import find_tissue
from .component_picture import draw_components
from .device import DeviceConfig
from .feature_file import FeatureFile
from .reading import read_regions
from .slides_loop import Tally, for_each_slide

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
