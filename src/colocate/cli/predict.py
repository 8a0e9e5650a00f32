"""`colocate features` and `colocate predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from colocate.base.text import say
from colocate.evaluation.candidates import PlainWeights, find_candidate
from colocate.evaluation.saved import load_model
from colocate.prediction.features import FeatureConfig
from colocate.prediction.features import features as write_features
from colocate.prediction.predict import PredictConfig
from colocate.prediction.predict import predict as look_at
from colocate.prediction.predictor import predictor
from colocate.slides.listing import find_slides
from colocate.slides.settings import check_mpp

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
    say(write_features(candidate, listed, out, config).sentence(out))


def predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    slides: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="SLIDE ...")],
    out: Path,
    config: Annotated[PredictConfig, Flat],
    slide_mpp: float | None = None,
    model_mpp: float | None = None,
) -> None:
    """What a fine-tuned model finds in slides, as GeoJSON for QuPath: objects, or a map of classes.

    Args:
        run: A result of `colocate evaluate --keep-models`, or a folder that holds just one.
        slides: Slides, folders of slides, or a table (.csv, .parquet) with a column `path`.
        out: Folder for SLIDE.geojson, .csv, .png, .tif and .json; slides that are done are not done again.
        slide_mpp: Micrometres per pixel of slides that do not say.
        model_mpp: Micrometres per pixel at which the model sees tissue, where its images do not say.
    """
    if model_mpp is not None:
        check_mpp(model_mpp, "--model-mpp")
    listed = find_slides(slides, slide_mpp)
    model = predictor(load_model(run), config.device.launch(), config.score, model_mpp)
    say(look_at(model, listed, out, config).sentence(out))
