"""The commands as functions of Python: what `colocate.pretrain`, `colocate.tile` and the others are.

Options are those of the commands, `-` as `_`. A group of options takes a mapping of its fields or the group's own
dataclass: `--optim.lr 0.1` is `optim={"lr": 0.1}`. Errors are `UserError`, with the sentence that the command prints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final, get_args, get_type_hints

import pydantic

from colocate.base.errors import UserError
from colocate.base.processes import first_defaults
from colocate.base.text import reason

if TYPE_CHECKING:
    from colocate.datasets.labelled import Labelled
    from colocate.evaluation.table import Drawn, Table
    from colocate.models.backbones import Backbone
    from colocate.prediction.image import Model
    from colocate.prediction.settings import FeatureConfig, PredictConfig
    from colocate.slides.runner import Tally
    from colocate.slides.settings import TilingConfig
    from colocate.slides.tile import Tiled
    from colocate.training.recipe import Recipe

Place = str | Path
Config = TypeVar("Config")


@final
@dataclass(frozen=True)
class Run:
    """A pretraining run in its folder."""

    path: Path

    def __init__(self, path: Place) -> None:
        """Raises UserError if the folder holds no run."""
        object.__setattr__(self, "path", Path(path))
        self.recipe  # noqa: B018  # says what is wrong with the folder

    @cached_property
    def recipe(self) -> Recipe:
        """Every setting of the run; of a method from outside colocate only what is written of it."""
        from colocate.training.recipe import read_recipe

        return read_recipe(self.path / "recipe.json")

    @property
    def journal(self) -> list[dict[str, float]]:
        """The rows of the journal so far, as `pandas.DataFrame` takes them; what a row lacks is nan.

        Raises UserError if there is no journal yet.
        """
        from colocate.training.journal import read_journal

        return read_journal(self.path)

    def __fspath__(self) -> str:
        """The run's folder, so that a run may stand wherever its folder may."""
        return str(self.path)

    def backbone(self) -> Backbone:
        """The pretrained backbone, in evaluation mode. Raises UserError before the first checkpoint."""
        from colocate.models.backbones import load_backbone

        return load_backbone(self.path)

    def report(self, out: Place | None = None, png: Place | None = None) -> Path:
        """Write the page of the run, and draw it as a PNG where one is named; returns where the page is."""
        return report(self, out=out, png=png)


def pretrain(
    recipe: Place | Recipe = "colocate", *, data: Place, out: Place | Run, resume: bool = False, **settings: Any
) -> Run:
    """Pretrain a backbone on tiles: `colocate.pretrain("colocate", data="tiles", out="run", epochs=10)`.

    An interrupt (Ctrl-C, a notebook's stop button) saves the run and raises `Interrupted`; the same call with `resume`
    goes on.

    Args:
        recipe: A name that `colocate recipes` lists, `my_module.py:my_recipe`, or a `Recipe`.
        data: Tiles or slides, as for `colocate pretrain --data`.
        out: The run folder.
        resume: Continue the run in `out`, or start it if it has not begun.
        settings: Other fields of `Recipe`, such as `epochs`, `batch`, `backbone`, `optim={"lr": 0.1}`.

    Raises:
        UserError: no such recipe or setting, data that cannot be read, or a run that cannot be gone on with.
        Interrupted: stopped, and saved.
    """
    from colocate.training import loop
    from colocate.training.recipe import Recipe
    from colocate.training.recipes import find_recipe

    asked = recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe))
    return Run(loop.pretrain(configured(asked, {"data": data, "out": out} | settings), resume))


@first_defaults()
def tile(
    slides: Place | Sequence[Place],
    out: Place,
    *,
    slide_mpp: float | None = None,
    config: TilingConfig | None = None,
    manifest_only: bool = False,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    scheduler: str | None = None,
    tissue: str | None = None,
    **settings: Any,
) -> Tiled:
    """Cut slides into tiles where tissue is, and write OUT/index.html of their pictures; returns their numbers.

    Args:
        slides: A slide, a folder of slides or a table, or several slides and folders.
        out: The folder of the tiles; the same call goes on in it.
        slide_mpp: Micrometres per pixel of slides that do not state it.
        config: Settings of the tiles; `settings` are changes of it.
        manifest_only: No shards: training reads tiles from the slides.
        part: The k-th of n shares of the slides, for job arrays; the last to end writes the manifest.
        workers: Processes (None: one per core).
        scheduler: Address of a Dask scheduler, whose workers take the slides instead.
        tissue: A function of your own that finds tissue, as my_module.py:function.
        settings: `mpp`, `size` and other fields of `TilingConfig`.

    Raises:
        UserError: as `colocate.slides.tile.tile`.
    """
    from colocate.pages.slides import write_slides
    from colocate.slides import tile as work
    from colocate.slides.listing import find_slides
    from colocate.slides.settings import TilingConfig

    done = work.tile(
        find_slides(_paths(slides), slide_mpp),
        Path(out),
        configured(config or TilingConfig(), settings),
        manifest_only=manifest_only,
        part=part,
        workers=workers,
        scheduler=scheduler,
        tissue=tissue,
    )
    if not done.missing:
        write_slides(Path(out))
    return done


@first_defaults()
def prepare(kind: str, src: Place, out: Place, **options: Any) -> Labelled | Path:
    """Bring a labelled data set into the one form that `evaluate` reads; see `colocate.datasets.prepare.prepare`.

    Returns the data set, of nct-crc-he the table of its tiles.

    Raises:
        UserError: no such data set or option, an option of the wrong kind, or files that are not as they should be.
    """
    from colocate.datasets.prepare import CONVERTERS, Kind
    from colocate.datasets.prepare import prepare as work

    if kind not in get_args(Kind):
        raise UserError(f"no data set {kind!r}: there are {', '.join(get_args(Kind))}")
    try:  # which refuses, among others, one word where there should be several: its letters would be taken for them
        pydantic.validate_call(work)(kind, Path(src), Path(out), **options)  # pyright: ignore[reportArgumentType]
    except pydantic.ValidationError as error:
        raise UserError(f"prepare: {reason(error)}") from error
    if kind not in CONVERTERS:
        return Path(out)
    from colocate.datasets.labelled import Labelled

    return Labelled.open(out)


@first_defaults()
def features(
    backbone: Place | Run,
    slides: Place | Sequence[Place],
    out: Place,
    *,
    slide_mpp: float | None = None,
    config: FeatureConfig | None = None,
    architecture: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    **settings: Any,
) -> Tally:
    """Write what a backbone sees in slides as HDF5, a vector per tile or cell; returns numbers of slides.

    Args:
        backbone: A run, a weights file, `imagenet` or `random`.
        slides: As for `tile`.
        out: The folder for SLIDE.h5; slides that are done are skipped.
        slide_mpp: Micrometres per pixel of slides that do not state it.
        config: Settings of the features; `settings` are changes of it.
        architecture: That of a plain weights file, of `imagenet` and of `random`.
        mean: Of the images that a plain weights file was trained on.
        std: Their standard deviation.
        settings: Fields of `FeatureConfig`: `of`, `mpp`, `size`, ...

    Raises:
        UserError: as `colocate.prediction.features.features`.
    """
    from colocate.prediction.settings import FeatureConfig
    from colocate.slides.listing import find_slides

    asked = configured(config or FeatureConfig(), settings)
    listed = find_slides(_paths(slides), slide_mpp)

    from colocate.evaluation.candidates import find_candidate
    from colocate.prediction.features import features as work

    return work(find_candidate(os.fspath(backbone), architecture, mean, std), listed, Path(out), asked)


@final
@dataclass(frozen=True)
class Results:
    """Results of an evaluation, each in a file of its own."""

    files: tuple[Path, ...]

    def tables(self, against: str | None = None, by: Drawn = "cases") -> list[Table]:
        """Means, intervals and differences from the backbone `against`; see `colocate table`.

        Raises:
            UserError: as `colocate.evaluation.table.collect`, or `by` is neither cases nor images.
        """
        from colocate.evaluation.table import Drawn, collect

        if by not in get_args(Drawn):
            raise UserError(f"intervals cannot be drawn by {by!r}: there are {', '.join(get_args(Drawn))}")
        return collect(self.files, against, by)

    @property
    def models(self) -> list[Path]:
        """The folders of the fine-tuned models that were kept."""
        from colocate.evaluation.saved import is_kept

        return [file.parent for file in self.files if is_kept(file.parent)]

    def __str__(self) -> str:
        """The tables in Markdown."""
        from colocate.evaluation.table import markdown

        return markdown(self.tables())


@first_defaults()
def evaluate(
    task: Literal["instances", "contours", "semantics", "probe"],
    *,
    data: Place,
    backbones: Place | Run | Sequence[Place | Run],
    out: Place = "results",
    architecture: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    smoke: bool = False,
    **settings: Any,
) -> Results:
    """Judge backbones by segmentation; what is there already is not computed again.

    Args:
        task: Fine-tune for objects (by Mask R-CNN, or by a U-Net of contours, which needs no GPU), or for classes of
            pixels, or leave the backbone as it is (probe).
        data: A data set that `prepare` wrote; it decides the task's defaults.
        backbones: Runs, weights files, `imagenet` or `random`; LABEL=... sets what tables call one.
        out: The folder of the results.
        architecture: That of plain weights files, of `imagenet` and of `random`.
        mean: Of the images that plain weights files were trained on.
        std: Their standard deviation.
        smoke: Take tiny settings, to see that all is in place.
        settings: Fields of `Protocol` (`seeds`, `fraction`, `keep_models`, `accelerator`, ...) and of the task.

    Raises:
        UserError: as `colocate.evaluation.protocol.evaluate`.
    """
    from colocate.evaluation.candidates import find_candidates
    from colocate.evaluation.protocol import evaluate as work
    from colocate.evaluation.settings import Protocol, task_for

    several = [backbones] if isinstance(backbones, Place | Run) else backbones
    protocol, asked = Protocol(data=str(data), out=str(out)), task_for(task, str(data), smoke)
    of_protocol = {name: value for name, value in settings.items() if name in _names(protocol)}
    rest = {name: value for name, value in settings.items() if name not in of_protocol}
    asked, protocol = configured(asked, rest, _names(protocol)), configured(protocol, of_protocol)
    candidates = find_candidates([os.fspath(one) for one in several], architecture, mean, std)
    return Results(tuple(work(asked, protocol, candidates)))


def load_model(place: Place, accelerator: str = "auto") -> Model:
    """Load a fine-tuned model that `evaluate` kept; its `predict` takes an image. See `Model.open`."""
    from colocate.prediction.image import Model

    return Model.open(place, accelerator)


@first_defaults()
def predict(
    model: Place | Model,
    slides: Place | Sequence[Place],
    out: Place,
    *,
    slide_mpp: float | None = None,
    model_mpp: float | None = None,
    config: PredictConfig | None = None,
    **settings: Any,
) -> Tally:
    """Write what a fine-tuned model finds in slides, as GeoJSON for QuPath; returns numbers of slides.

    Args:
        model: A result of `evaluate` with `keep_models`, a folder that holds just one, or a loaded model.
        slides: As for `tile`.
        out: The folder for SLIDE.geojson, .csv, .png, .tif and .json; slides that are done are skipped.
        slide_mpp: Micrometres per pixel of slides that do not state it.
        model_mpp: Micrometres per pixel at which the model sees tissue, if its images do not state it.
        config: Settings of the prediction; `settings` are changes of it.
        settings: Fields of `PredictConfig`: `score`, `window`, `batch`, ...

    Raises:
        UserError: as `colocate.prediction.predict.predict`.
    """
    from colocate.prediction.settings import PredictConfig
    from colocate.slides.listing import find_slides
    from colocate.slides.settings import check_mpp

    if model_mpp is not None:
        check_mpp(model_mpp, "--model-mpp")
    asked = configured(config or PredictConfig(), settings)
    listed = find_slides(_paths(slides), slide_mpp)

    from colocate.evaluation.saved import load_model as read_model
    from colocate.prediction.predict import predict as work
    from colocate.prediction.predictor import predictor

    saved = read_model(Path(model)) if isinstance(model, Place) else model.saved
    return work(predictor(saved, asked.device.launch(), asked.score, model_mpp), listed, Path(out), asked)


@first_defaults()
def report(*runs: Place | Run, out: Place | None = None, png: Place | None = None) -> Path:
    """Write the page of a run, or of several to compare them, and draw it as a PNG where one is named.

    Returns where the page is: RUN/report.html or compare.html, if not `out`.
    """
    from colocate.pages.compare import compare
    from colocate.pages.page import report as of_one

    paths = [Path(run) for run in runs]
    picture = None if png is None else Path(png)
    if len(paths) == 1:
        return of_one(paths[0], None if out is None else Path(out), picture)
    page = Path(out or "compare.html")
    compare(paths, page, picture)
    return page


def configured(config: Config, settings: Mapping[str, Any], others: Sequence[str] = ()) -> Config:
    """A dataclass of settings with other values, by the names that commands give them (`-` as `_`).

    Fields of its groups whose options have no prefix (`--backbone`, `--workers`) are taken too. `others` are settings
    that could have been meant.

    Raises:
        UserError: no such setting, or a value of the wrong kind.
    """
    groups, given = _flat(config), {}
    of_groups: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        own = getattr(config, name, None)
        if group := next((group for group in groups if name in _names(getattr(config, group))), None):
            of_groups.setdefault(group, {})[name] = value
        elif name not in _names(config):
            known = [*_names(config), *others]
            close = get_close_matches(name, known, 1)
            hint = f": did you mean {close[0]}?" if close else f": there are {', '.join(known)}"
            raise UserError(f"{type(config).__name__} has no setting {name!r}{hint}")
        else:
            given[name] = configured(own, value) if is_dataclass(own) and isinstance(value, Mapping) else value
    given |= {group: configured(getattr(config, group), its) for group, its in of_groups.items()}
    try:
        plain = {field.name: getattr(config, field.name) for field in fields(config)}  # pyright: ignore
        return pydantic.TypeAdapter(type(config)).validate_python(plain | given)
    except pydantic.ValidationError as error:
        raise UserError(f"{type(config).__name__}: {reason(error)}") from error


def _flat(config: Any) -> list[str]:
    """The groups of a configuration whose options have no prefix."""
    hints = get_type_hints(type(config), include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return [name for name, found in marks.items() if any(getattr(mark, "name", None) == "" for mark in found)]


def _names(config: Any) -> list[str]:
    """All settings by the names that commands give them."""
    flat = _flat(config)
    own = [field.name for field in fields(config) if field.name not in flat]
    return own + [name for group in flat for name in _names(getattr(config, group))]


def _paths(places: Place | Sequence[Place]) -> list[Path]:
    return [Path(place) for place in ([places] if isinstance(places, Place) else places)]
