"""`colocate features`: its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ..evaluate.candidates import PlainWeights, find_candidate
from ..tiling.listing import find_slides
from .features import FeatureConfig
from .features import features as write_features

Flat = tyro.conf.arg(name="")


def features(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    slides: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="SLIDE ...")],
    out: Path,
    config: Annotated[FeatureConfig, Flat],
    weights: Annotated[PlainWeights, Flat],
    slide_mpp: float | None = None,
) -> None:
    """What a backbone sees in slides, as HDF5 for multiple-instance tools: a vector a tile, or a vector a cell.

    Args:
        run: A pretraining run's folder, a weights file, imagenet or random.
        slides: Slides, folders of slides, or a table (.csv, .parquet) with a column `path`.
        out: Folder for SLIDE.h5 and the picture SLIDE.png; slides that are there are not done again.
        slide_mpp: Micrometres per pixel of slides that do not say.
    """
    listed = find_slides(slides, slide_mpp)
    candidate = find_candidate(run, weights.architecture, weights.mean, weights.std)
    print(write_features(candidate, listed, out, config).sentence(out))
