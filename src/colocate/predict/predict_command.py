"""`colocate predict`: its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ..evaluate.saved import load_model
from ..slide import check_mpp
from ..tiling.listing import find_slides
from .predict import PredictConfig
from .predict import predict as look_at
from .predictor import predictor


def predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
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
    print(look_at(model, listed, out, config).sentence(out))
