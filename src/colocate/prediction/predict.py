"""Predict slides with a fine-tuned network: objects, or the class of each pixel, as files for people and programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import shapely
import torch

from colocate.base.errors import TileError, UserError
from colocate.prediction.outputs import Marker, Outlined, beside, class_map, regions, write_class_map, write_outlines
from colocate.prediction.predictor import Predictor, read_regions
from colocate.prediction.settings import PredictConfig
from colocate.prediction.stitch import Window, Windows, merge, pieces, windows_over
from colocate.slides.listing import Listed
from colocate.slides.runner import Meter, Tally, for_each_slide
from colocate.slides.slide import Slide
from colocate.slides.tissue import Tissue, find_tissue

VERSION = 8  # of predictions; to be raised when the same settings would give others
LEAST_TISSUE = 0.5  # of an object


def predict(predictor: Predictor, slides: Sequence[Listed], out: Path, config: PredictConfig) -> Tally:
    """Write OUT/SLIDE.geojson, .csv, .png (and .tif of classes), then .json, for each slide that is not done.

    OUT/failed.csv lists slides that failed.

    Raises UserError: settings that do not fit, or are not those of the files that are there; a full disk.
    """
    side, overlap = config.windows(predictor.task)
    if any(slide.name == "failed" for slide in slides):
        raise UserError("failed.csv lists slides that fail: give the slide `failed` another name, in a table of slides")
    runner = _Runner(predictor, out, config, side, overlap)
    return for_each_slide(slides, lambda listed: runner.marker(listed).finished(), runner.work, out, "window")


Seen = Iterator[tuple[Window, Any]]
"""Windows and what is found in them."""


@final
@dataclass(frozen=True)
class _Runner:
    predictor: Predictor
    out: Path
    config: PredictConfig
    side: int
    overlap: int

    def marker(self, listed: Listed) -> Marker:
        """Return the slide's marker, with all that decides its files."""
        objects = self.predictor.task == "instances"
        settings = {
            "version": VERSION,
            "task": self.predictor.task,
            "model": self.predictor.fingerprint,
            "mpp": self.predictor.mpp,
            "window": self.side,
            "overlap": self.overlap,
            "precision": self.config.device.precision,
            **({"score": self.config.score} if objects else {"min_area": self.config.min_area}),
            **listed.identity(),
        }
        return Marker(self.out / listed.name, settings)

    def work(self, listed: Listed, meter: Meter) -> None:
        """Predict a slide. Raises TileError if it is damaged, coarse or without tissue, UserError on a full disk."""
        began = time.perf_counter()
        slide = listed.open()
        slide.check_shows(self.predictor.mpp)
        mpp = slide.nearest_mpp(self.predictor.mpp)
        scale = mpp / slide.mpp
        tissue = find_tissue(slide, listed.mask)
        windows = windows_over(slide.width / scale, slide.height / scale, self.side, self.overlap)
        every, wide = list(windows), windows.side * scale
        x, y = np.array([(window.left, window.top) for window in every]).T * scale
        shares = tissue.shares(x, y, wide, wide)
        places = [window for window, share in zip(every, shares, strict=True) if share > 1e-9]
        if not places:
            raise TileError(f"no tissue was found in {slide.path}: give a mask of it, in a table of slides")
        meter.begin(len(places))
        marker, seen = self.marker(listed), self._seen(slide, tissue, places, mpp, meter)
        if self.predictor.task == "instances":
            results = self._objects(slide, tissue, scale, seen, marker)
        else:
            results = self._classes(slide, mpp, windows, seen, marker)
        words = ", ".join(f"{name} {value:,}" for name, value in next(iter(results.values())).items())
        meter.say(f"{listed.name}: {next(iter(results)).replace('_', ' ')}: {words}")
        known = {"slide": str(slide.path), "level0_mpp": slide.mpp, "seen_mpp": mpp, "origin": slide.origin}
        results |= known | {"windows": len(places), "seconds": round(time.perf_counter() - began, 2)}
        marker.write(results | {"model": self.predictor.facts, "colocate": version("colocate")})

    def _seen(self, slide: Slide, tissue: Tissue, places: Sequence[Window], mpp: float, meter: Meter) -> Seen:
        """Only what is read ahead is in memory."""
        scale, side = mpp / slide.mpp, places[0].side
        corners = np.array([(window.left, window.top) for window in places]) * scale
        rest, device, within = iter(places), self.config.device, np.arange(side) + 0.5
        for images in read_regions(slide, corners, side, mpp, device.batch, device.readers):
            some = list(islice(rest, len(images)))
            on = [tissue.at((window.left + within) * scale, (window.top + within) * scale) for window in some]
            yield from zip(some, self.predictor.look(images.contiguous(), torch.from_numpy(np.stack(on))), strict=True)
            meter.advance(len(images))

    def _objects(self, slide: Slide, tissue: Tissue, scale: float, seen: Seen, marker: Marker) -> dict[str, Any]:
        """Write objects, each once; none that is mostly glass. `scale`: level0 pixels a pixel of the windows."""
        found = [piece for window, found in seen for piece in pieces(window, found)]
        marker.write()

        def on_tissue() -> Iterator[Outlined]:
            for merged in merge(found):
                shape = shapely.transform(merged.shape, lambda points: points * scale)
                if tissue.share_of(shape) >= LEAST_TISSUE:
                    yield merged._replace(shape=shape)

        return {"objects": write_outlines(marker.place, slide, on_tissue(), self.predictor.shown, "detection")}

    def _classes(self, slide: Slide, mpp: float, windows: Windows, seen: Seen, marker: Marker) -> dict[str, Any]:
        """Write the map of classes, then its regions. `mpp`: micrometres per pixel of the windows."""
        place, shown = marker.place, self.predictor.shown
        classes, confidence = class_map(place.parent, windows.height, windows.width)
        for window, found in seen:
            found.paste(window, classes, confidence)
        marker.write()
        write_class_map(beside(place, ".tif"), classes, mpp)
        least = self.config.min_area / mpp**2
        found = regions(classes, confidence, shown, least, mpp / slide.mpp)
        number = write_outlines(place, slide, found, shown, "annotation")
        counts: Any = sum(np.bincount(row, minlength=256) for row in classes)
        areas = {
            name: round(int(counts[class_]) * mpp**2 / 1e6, 6)
            for class_, name in enumerate(self.predictor.classes)
            if class_ != self.predictor.ignored
        }
        return {"area_mm2": areas, "regions": number}
