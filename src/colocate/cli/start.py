"""`colocate start`: from slides and a few annotated regions to objects on all slides, command after command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.parquet as pq
import tyro

from colocate import api
from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.tables import TABLES
from colocate.base.text import composed, counted, say
from colocate.slides.listing import MANIFEST, Listed, find_slides
from colocate.slides.settings import check_mpp
from colocate.training.recipe import Recipe, read_recipe
from colocate.training.recipes import find_recipe

if TYPE_CHECKING:
    from colocate.datasets.labelled import Labelled
    from colocate.datasets.own import Known

U_NET = {"crop": 128, "fit": {"steps": 600, "batch": 8, "warmup": 0.1}}
"""With which a U-Net learns glands on a CPU in a quarter of an hour (docs/LOG.md)."""


def start(
    slides: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SLIDES")],
    out: Path,
    labels: Path | None = None,
    mpp: float = 1.0,
    slide_mpp: float | None = None,
    recipe: str = "colocate",
    init: str | None = None,
    hours: float = 4.0,
    dry_run: bool = False,
) -> None:
    """From slides and a few annotated regions to objects on all slides: tile, pretrain, fine-tune, predict.

    It first says what it will do. If it is stopped, the same command continues; what is done is not done again.

    Args:
        slides: A slide, a folder of slides, or a table (.csv, .parquet) of path, and slide, source, mpp, mask if known.
        out: The folder for everything: labels, tiles, run, results, objects.
        labels: Folder of SLIDE.geojson, annotations of some of the slides (as for `colocate prepare qupath`); without
            it, the work ends after pretraining.
        mpp: Micrometres per pixel of all steps: 1 for glands, 0.5 or 0.25 for nuclei.
        slide_mpp: Micrometres per pixel of slides that do not state it.
        recipe: How to pretrain: a name that `colocate recipes` lists, or my_module.py:my_recipe.
        init: Weights to start from in place of the recipe's: a file for its backbone, a run, published
            (downloaded) or random.
        hours: Hours that pretraining may take, estimated from a few trial steps.
        dry_run: Only say what would be done, and what is wrong with the annotations.
    """
    check_mpp(mpp, "--mpp")
    listed = find_slides([slides], slide_mpp)
    asked = find_recipe(recipe)
    if init is not None:
        asked = replace(asked, encoder=replace(asked.encoder, init=init))
    if hours <= 0:
        raise UserError(f"--hours {hours:g} leaves no time to pretrain: give more than 0")
    for number, line in enumerate(_plan(listed, labels, mpp, asked, hours), start=1):
        say(f"{number}. {line}")
    made, note = out / "labels" / "dataset.json", out / "labels" / "made-of.txt"
    early = out / ".made-of.txt"  # written before the labels, so that they are never without it
    made_of = "" if labels is None else _made_of(labels, listed, mpp)
    stated = next((path.read_text() for path in (note, early) if path.is_file()), made_of)
    if labels is not None and made.exists() and stated != made_of:
        told = f"{labels}, its slides or --mpp are not what {note.parent} was made of"
        raise UserError(f"{told}: choose another --out, or undo the change")
    place = slides if slides.is_dir() or slides.suffix.lower() in TABLES else slides.parent
    from_slides = {"images": str(place.absolute()), "mpp": mpp, "slide_mpp": slide_mpp}
    if dry_run:
        if labels is not None:
            from colocate.datasets.qupath import drafts

            drafts(labels.absolute(), **from_slides)  # which says what is wrong with them, and writes nothing
        return
    import torch

    from colocate.data.rows import quoted
    from colocate.datasets.labelled import Labelled
    from colocate.datasets.own import read_items
    from colocate.datasets.prepare import prepare
    from colocate.evaluation.candidates import find_candidate
    from colocate.evaluation.leakage import check, tiles_of
    from colocate.evaluation.settings import ContoursConfig, ProbeConfig
    from colocate.evaluation.tasks import check_stages
    from colocate.training.loop import build_backbone

    build_backbone(asked)  # weights that cannot be had are refused before an hour of tiling
    sides, before = compared(asked, out / "run"), None
    if labels is not None:  # and those that cannot be judged
        before = find_candidate(sides["backbones"][1], *map(sides.get, ("architecture", "mean", "std")))
        for task in (ProbeConfig(), ContoursConfig()):
            check_stages(task, before)
    if labels is not None and not made.exists():
        write_atomically(early, made_of)
        prepare("qupath", labels.absolute(), out / "labels", **from_slides)
    if early.is_file() and made.exists():
        early.replace(note)
    data, results = out / "labels", out / "results"
    labelled = None if labels is None else Labelled.open(data)
    shared = labelled is not None and bool(labelled.shared_sources(labelled.schemes[0]))
    if labelled is not None and before is not None and before.path is not None and not shared:
        found = check(labelled, labelled.schemes[0], tiles_of(before.path), before.origin).found
        if found:
            told = f"{found[0]}, so {asked.encoder.first_weights} cannot be judged"
            raise UserError(f"{told}: give others with --init, or other labels")
    api.tile(slides, out / "tiles", slide_mpp=slide_mpp, mpp=mpp)
    cut = pq.read_table(out / "tiles" / MANIFEST, columns=["slide"])["slide"].unique().to_pylist()
    tested: list[str] = []
    if labels is not None and labelled is not None:
        items = read_items(labels / "items.csv", (), None, others={composed(slide.path.stem) for slide in listed})
        tested = [name for name in tested_slides(labelled, listed, items) if name in cut]
    held_out = (*asked.hold_out, *((f"slide={quoted(tested)}",) if tested else ()))
    fitting = fit_into(hours, replace(asked, data=str(out / "tiles"), hold_out=held_out), out / "run", tested)
    run = api.pretrain(fitting, data=out / "tiles", out=out / "run", resume=True)
    page = run.report()
    if labelled is None:
        say(f"done: look at {page}")
        return
    # Of cases on both sides of the split pretraining sees tissue too.
    how = {"data": data, "out": results, "seeds": 1, "allow_leakage": shared, **sides}
    api.evaluate("probe", **how)
    if torch.cuda.is_available():
        judged = api.evaluate("instances", keep_models=True, **how)
    else:
        judged = api.evaluate("contours", keep_models=True, **how, **U_NET)
    model = judged.models[0]  # the pretrained one's
    api.predict(model, slides, out / "objects", slide_mpp=slide_mpp)
    say(f"{api.Results(tuple(results.rglob('result.json')))}")
    say(f"done: drag a slide's .geojson from {out / 'objects'} onto it in QuPath; the pretraining: {page}")


def compared(recipe: Recipe, run: Path) -> dict[str, Any]:
    """What `api.evaluate` is to compare: a run, and the weights that it began with."""
    from colocate.models.backbones import names_run

    begun = recipe.encoder.init
    before = {"random": "random", "published": "imagenet"}.get(begun, f"before={begun}")
    look = {"architecture": recipe.encoder.backbone, "mean": recipe.views.mean, "std": recipe.views.std}
    return {"backbones": [f"pretrained={run}", before]} | ({} if names_run(begun) else look)  # a run says its own


def _plan(slides: Sequence[Listed], labels: Path | None, mpp: float, recipe: Recipe, hours: float) -> Iterator[str]:
    import torch

    from colocate.datasets.qupath import annotation_files

    number = counted(len(slides), "slide")
    if labels is not None:
        yield f"labels: the regions annotated on {counted(len(annotation_files(labels)), 'slide')} of {labels}"
    yield f"tiles: {number} cut at {mpp:g} micrometres per pixel"
    rest = ", without the cases that are tested on" if labels else ""
    better = " (--recipe colocate-continue starts from ImageNet's weights, downloaded or of --init FILE: often better)"
    weights = recipe.encoder.first_weights
    begun = better if recipe.encoder.init == "random" else f", from {weights}"
    yield f"run: {recipe.name} on the tiles{rest}: {hours:g} hours at most, by the speed of a few steps{begun}"
    if labels is not None:
        slow = "a U-Net of contours (half an hour on two cores; Mask R-CNN would want a GPU)"
        kind = "Mask R-CNN" if torch.cuda.is_available() else slow
        yield f"results: {kind}, fine-tuned from the run and from {weights}, and a linear probe of both"
        yield f"objects: what the model finds on {number}"


def _made_of(labels: Path, slides: Sequence[Listed], mpp: float) -> str:
    """A hash of all that the labels are made of."""
    from colocate.datasets.qupath import annotation_files

    files = annotation_files(labels, {composed(slide.path.stem) for slide in slides})
    texts = [path.read_bytes() for path in (*files.values(), labels / "items.csv") if path.is_file()]
    its = [(slide.source, slide.identity()) for slide in slides if composed(slide.path.stem) in files]
    return blake2b(repr((mpp, sorted(files), texts, its)).encode(), digest_size=16).hexdigest()


def tested_slides(data: Labelled, slides: Sequence[Listed], items: Mapping[str, Known]) -> list[str]:
    """The slides that labels test on and all others of their cases, which pretraining must not see; but for cases that
    are trained on too, as where labels are of one slide alone. items: what items.csv says, by the names of files."""

    def cases(slide: Listed) -> set[str]:
        stem = composed(slide.path.stem)
        return {composed(slide.source), items[stem].source if stem in items else ""} - {""}

    tested = data.unseen(data.schemes[0])
    names = {data.slide(number) for number in tested}
    held = {data.items[number].source for number in tested}.union(
        *(cases(slide) for slide in slides if composed(slide.path.stem) in names)
    )
    files = {slide.file for slide in slides if cases(slide) & held} - {None}  # and links to them
    return [slide.name for slide in slides if cases(slide) & held or slide.file in files]


def fit_into(hours: float, recipe: Recipe, run: Path, left_out: Sequence[str]) -> Recipe:
    """The recipe with as many steps as fit, or as the run has begun with; with a batch that the tiles fill.

    The warm-up is a tenth of the steps at most. Few tiles are seen more often than the recipe's epochs say: dozens of
    steps would teach nothing.
    """
    from colocate.cli.demo import pairs_per_s
    from colocate.training.run import ENOUGH, planned_steps

    stored = run / "recipe.json"
    if stored.is_file():
        before = read_recipe(stored)
        optim = replace(recipe.optim, warmup_epochs=before.optim.warmup_epochs)
        return replace(recipe, steps=before.steps, batch=before.batch, optim=optim)
    column = pq.read_table(Path(recipe.data) / MANIFEST, columns=["slide"])["slide"]
    tiles = sum(name not in left_out for name in column.to_pylist())
    recipe = replace(recipe, batch=min(recipe.batch, max(2, tiles)))
    fits = int(hours * 3600 * pairs_per_s(recipe) / recipe.batch / recipe.accumulate)
    wanted = recipe.steps or max(ENOUGH, planned_steps(recipe, tiles))
    steps = max(1, min(fits, wanted))
    tenth = 0.1 * steps * recipe.accumulate / max(1, tiles // recipe.batch)  # in epochs
    warmup = replace(recipe.optim, warmup_epochs=min(recipe.optim.warmup_epochs, tenth))
    return replace(recipe, steps=steps, optim=warmup)
