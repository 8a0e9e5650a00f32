"""Extract features of slides: a frozen backbone's vector for each tile of tissue, or for each cell of its grid."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import nn

from colocate.base.errors import TileError, UserError
from colocate.base.files import light_png, reserve, write_atomically
from colocate.base.text import Terminal
from colocate.evaluation.candidates import Candidate
from colocate.models.backbones import Backbone
from colocate.pages.panels import principal_components
from colocate.prediction.outputs import FEATURE_SETTINGS, ROWS, beside, check_settings
from colocate.prediction.predictor import read_regions
from colocate.prediction.settings import FeatureConfig
from colocate.slides.listing import Listed
from colocate.slides.one_slide import places
from colocate.slides.runner import Meter, Tally, for_each_slide
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tissue import find_tissue
from colocate.training.probes import cell_features

VERSION = 4  # of features; to be raised when the same settings would give other numbers
NEAR = 1.25  # a backbone may see tissue at a resolution so many times finer or coarser than its own without a note
SIDES_PX = (790, 640, 520, 420, 320)  # of the slide's longer side in the picture; the largest whose PNG is light
GAP_PX = 10
GREY = (200, 200, 200)  # where there are no features
MOST = 20_000  # rows that components are fitted to
SPARE_BYTES = 1 << 20  # of a file, for all that is not features


def features(candidate: Candidate, slides: Sequence[Listed], out: Path, config: FeatureConfig) -> Tally:
    """Write OUT/SLIDE.h5 and its picture OUT/SLIDE.png for every slide that has none; OUT/failed.csv lists failures.

    Raises UserError: settings that do not fit the backbone or the features that are there; a full disk.
    """
    mpp = config.mpp or candidate.mpp
    if mpp is None:
        raise UserError(
            f"{candidate.origin} does not say at which resolution it sees tissue: give --mpp "
            "(0.5 for what learned from 20x scans, 0.25 from 40x)"
        )
    tiling = TilingConfig(mpp, config.size, min_tissue=config.min_tissue)
    if candidate.mpp and not 1 / NEAR <= mpp / candidate.mpp <= NEAR:
        told = f"{candidate.label} was pretrained at {candidate.mpp:g} micrometres per pixel, not at {mpp:g}"
        Terminal().say(f"note: {told}")
    asked = config.output_stride
    early = candidate.cell_stride
    if asked and early and early < candidate.build(0, candidate.output_stride).strides[-1]:
        told = f"{candidate.label} has cells of {early} px, and its later stages were not trained"
        raise UserError(f"{told}: leave --output-stride out")
    backbone = candidate.build(0, asked or candidate.output_stride, None if asked else candidate.cell_stride)
    backbone.check(config.size, "--size")
    network = config.device.launch().setup_module(backbone)
    extractor = _Extractor(candidate, config, tiling, out, backbone, network)
    return for_each_slide(slides, extractor.written, extractor.write, out, "tile")


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

    def settings(self, listed: Listed) -> dict[str, Any]:
        """Return all that decides a slide's features."""
        return {
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

    def written(self, listed: Listed) -> bool:
        """Tell whether a slide is done. Raises UserError: it holds something else, or features of other settings."""
        import h5py  # of an extra that `predict`, whose command stands beside this one's, does without

        path, picture = self._files(listed)
        if not path.exists():
            if picture.exists():
                raise UserError(f"{picture} is there, but not its features: choose another --out, or remove it")
            return False
        try:
            with h5py.File(path, locking=False) as file:
                stored: Any = json.loads(str(file.attrs[FEATURE_SETTINGS]))
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is no file of colocate's features: choose another --out") from error
        check_settings(path, stored, self.settings(listed))
        return picture.exists()

    def write(self, listed: Listed, meter: Meter) -> None:
        """Extract a slide. Raises TileError if it is damaged, coarse or without tissue, UserError on a full disk."""
        slide = listed.open()
        vectors, picture = self._files(listed)
        if vectors.exists():  # whoever wrote it was stopped before its picture
            return draw_components(vectors, slide, picture)
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
            "slide": str(listed.path),
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

        def content(file: Any) -> None:
            import h5py

            path = Path(file.name)
            with h5py.File(path, "w", locking=False) as stored:  # it is locked already
                stored.attrs[FEATURE_SETTINGS] = json.dumps(self.settings(listed), sort_keys=True)
                rows = stored.create_dataset("features", (len(coords), self.backbone.channels), "<f4")
                rows.attrs.update(of_features)
                stored.create_dataset("coords", data=coords).attrs.update(of_coords)
                # Room is taken first: on a full disk HDF5 ends the process, without an error (h5py issue 914).
                reserve(file, rows.nbytes + coords.nbytes + SPARE_BYTES)
                start = 0
                for batch in batches:
                    rows[start : start + len(batch)] = batch
                    start += len(batch)
                stored.flush()
                size = stored.id.get_filesize()
            file.truncate(size)  # gives back the room that was not needed

        write_atomically(vectors, content)
        draw_components(vectors, slide, picture)

    def _files(self, listed: Listed) -> tuple[Path, Path]:
        place = self.out / listed.name
        return beside(place, ".h5"), beside(place, ".png")

    def _vectors(
        self, slide: Slide, tiles: Int64[np.ndarray, "n 2"], mpp: float, meter: Meter
    ) -> Iterator[Float[np.ndarray, "_ c"]]:
        """Iterate over batches of vectors; only what is read ahead is in memory."""
        batch, size = self.config.device.batch, self.tiling.size
        ahead = read_regions(slide, tiles, size, mpp, batch, self.config.device.readers)
        for images in ahead:
            grids = cell_features(self.network, images, self.candidate.mean, self.candidate.std, batch)
            yield (grids.mean((1, 2)) if self.config.of == "tiles" else grids.flatten(0, 2)).numpy()
            meter.advance(len(images))


def cell_places(tiles: Int64[np.ndarray, "n 2"], grid: int, pitch: float) -> Int64[np.ndarray, "m 2"]:
    """Return the top left corners of tiles' grid x grid cells, row by row; `pitch`: level0 pixels a cell.

    >>> cell_places(np.array([[100, 0]]), grid=2, pitch=3.4).tolist()
    [[100, 0], [103, 0], [100, 3], [103, 3]]
    """
    y, x = np.mgrid[:grid, :grid].reshape(2, 1, -1) * pitch
    return np.rint(np.stack([tiles[:, :1] + x, tiles[:, 1:] + y], -1)).astype(np.int64).reshape(-1, 2)


def draw_components(features: Path, slide: Slide, out: Path) -> None:
    """Write a PNG of at most 1,600 px and 300 kB: the slide, and the components of its features in an HDF5 file."""
    lattice, pitch = _lattice(features, slide)

    def page(side: int) -> Image.Image:
        thumbnail = Image.fromarray(slide.thumbnail(side))
        width, height = thumbnail.size
        # A pixel of the lattice is a feature: squares where they are large, means where there are many a pixel.
        how = Image.Resampling.BOX if max(lattice.shape[:2]) > side else Image.Resampling.NEAREST
        box = (0, 0, slide.width / pitch, slide.height / pitch)
        page = Image.new("RGB", (2 * width + GAP_PX, height), "white")
        page.paste(thumbnail, (0, 0))
        page.paste(Image.fromarray(lattice).resize((width, height), how, box), (width + GAP_PX, 0))
        return page.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)

    write_atomically(out, light_png(map(page, SIDES_PX)))


def _lattice(path: Path, slide: Slide) -> tuple[UInt8[np.ndarray, "rows columns 3"], float]:
    """Draw each feature as a pixel, grey where there is none; also return the level0 pixels a pixel."""
    import h5py

    with h5py.File(path, locking=False) as file:
        features: Any = file["features"]
        coords: Any = file["coords"]
        pitch = coords.attrs["patch_size"] * coords.attrs["mpp"] / slide.mpp
        lattice = np.full((math.ceil(slide.height / pitch), math.ceil(slide.width / pitch), 3), GREY, np.uint8)
        components = principal_components(torch.from_numpy(features[:: math.ceil(len(features) / MOST)]))
        for start in range(0, len(features), ROWS):
            x, y = np.rint(coords[start : start + ROWS] / pitch).astype(int).T
            colours = components.colours(torch.from_numpy(features[start : start + ROWS])).numpy()
            lattice[y, x] = (colours * 255).round()
    return lattice, pitch
