"""`colocate features` and `colocate predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from colocate import api
from colocate.base.text import say
from colocate.core.settings import PlainWeights
from colocate.prediction.settings import FeatureConfig, PredictConfig
from colocate.training.recipe import Flat


def features(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    slides: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="SLIDE ...")],
    out: Path,
    config: Annotated[FeatureConfig, Flat],
    weights: Annotated[PlainWeights, Flat],
    slide_mpp: float | None = None,
) -> None:
    """Extract a backbone's features of slides, as HDF5 for multiple-instance tools: a vector per tile or per cell.

    Args:
        run: A pretraining run's folder, a weights file, imagenet or random.
        slides: Slides, folders of slides, or a table (.csv, .parquet) with a column `path`.
        out: Folder for SLIDE.h5 and the picture SLIDE.png; slides that are done are skipped.
        slide_mpp: Micrometres per pixel of slides that do not state it.
    """
    done = api.features(run, slides, out, slide_mpp=slide_mpp, config=config, **vars(weights))
    say(done.sentence(out))


def predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    slides: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="SLIDE ...")],
    out: Path,
    config: Annotated[PredictConfig, Flat],
    slide_mpp: float | None = None,
    model_mpp: float | None = None,
) -> None:
    """Apply a fine-tuned model to slides: objects, or a map of classes, as GeoJSON for QuPath.

    Args:
        run: A result of `colocate evaluate --keep-models`, or a folder that holds just one.
        slides: Slides, folders of slides, or a table (.csv, .parquet) with a column `path`.
        out: Folder for SLIDE.geojson, .csv, .png, .tif and .json; slides that are done are skipped.
        slide_mpp: Micrometres per pixel of slides that do not state it.
        model_mpp: Micrometres per pixel at which the model sees tissue, if its images do not state it.
    """
    done = api.predict(run, slides, out, slide_mpp=slide_mpp, model_mpp=model_mpp, config=config)
    say(done.sentence(out))
