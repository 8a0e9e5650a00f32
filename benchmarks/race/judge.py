"""How a backbone is judged: linear probes of frozen cells, a U-Net fine-tuned end to end, the health of its cells."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.race.pack import FOLDS
from benchmarks.race.report import mean
from colocate.base.errors import UserError
from colocate.core.matching import overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_views
from colocate.data.index import Index
from colocate.data.loader import spaced
from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import Candidate
from colocate.evaluation.decoders import Segmenter, class_target, cropped
from colocate.evaluation.fit import Examples, fit
from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.settings import Engine, FitConfig, ProbeConfig, SemanticsConfig
from colocate.training import diagnostics
from colocate.training.probes import Look, frozen_cells, probe

Record = dict[str, Any]
Cases = dict[str, tuple[float, int]]
"""Of each case (a patient): the mean Dice, in percent, of its images of which something counts, and their number."""
FIT = FitConfig(steps=200, batch=8, optimizer="adamw", lr=5e-4, weight_decay=0.02, warmup=0.1, drops=())
BOUND = replace(FIT, steps=2000)
FEW = 10
"""One training image in so many, for the fine-tuning with few."""
MPP = 1.24
"""Glands are looked at at half of GlaS's resolution: on the training patients all backbones find them better there."""


@dataclass(frozen=True)
class Track:
    """The labelled sets of a race's folder, and which images judge: those of the test, or of the training patients."""

    folder: Path
    test: bool = False

    def splits(
        self, data: Labelled, scheme: str, folds: Sequence[int] = range(FOLDS)
    ) -> list[tuple[list[int], list[int]]]:
        """Images to learn from and to judge, once for the test, else once a fold."""
        schemes = [scheme] if self.test else [f"valid{fold}" for fold in folds]
        return [(data.train(name), data.test(name)) for name in schemes if data.test(name)]

    def judge(self, candidate: Candidate, seed: int, quick: bool = False) -> dict[str, Cases]:
        """The judged cases, by score; `quick` leaves fine-tuning out."""
        glas, half, ebhi = (Labelled.open(self.folder / name) for name in ("glas", "glas-half", "ebhi"))
        near, far = (self.look(candidate, glas, seed, mpp) for mpp in (None, MPP))
        judges: dict[str, Callable[[], list[Record]]] = {
            "glas linear": lambda: self.linear(far, glas, "patients", seed),
            "glas linear, 5 images": lambda: self.linear(far, glas, "patients", seed, few=5),
            "glas linear, 0.62 um": lambda: self.linear(near, glas, "patients", seed),
            "ebhi linear": lambda: self.linear(self.look(candidate, ebhi, seed, None), ebhi, "cases", seed, most=300),
        }
        if not quick:
            judges["glas U-Net"] = lambda: self.fine_tuned(candidate, half, seed, every=1)
            judges["glas U-Net, 10 %"] = lambda: self.fine_tuned(candidate, half, seed, every=FEW)
        found = {}
        for score, judged in judges.items():
            found[score] = _by_case(judged())
            print(f"{score} {mean(found[score]):.1f}", flush=True)  # where time is short, what is known by its end
        return found

    def look(self, candidate: Candidate, data: Labelled, seed: int, mpp: float | None) -> Look:
        """A candidate's frozen cells of stride 16, each image's made once."""
        config = ProbeConfig(mpp=mpp, statistics="images" if candidate.origin == "random" else "own")
        backbone = candidate.build(seed, cell_stride=config.stride)
        train = data.train("patients" if "patients" in data.schemes else "cases")
        return cache(frozen_cells(backbone, data, train, config, candidate.mean, candidate.std))

    def linear(
        self, look: Look, data: Labelled, scheme: str, seed: int, few: int | None = None, most: int | None = None
    ) -> list[Record]:
        """Logistic regression; with `few`, from so many images, three draws of them; `most` images on either side."""
        records = []
        for train, judged in self.splits(data, scheme, range(FOLDS) if most is None else (0,)):
            train, judged = (side if most is None else spaced(side, most) for side in (train, judged))
            draws = [train] if few is None else [spaced(train[turn:] + train[:turn], few) for turn in range(3)]
            for some in draws:
                calls = probe(look, data, some, judged, ProbeConfig(), seed)
                records += [_record(data, number, called) for number, called in calls]
        return records

    def fine_tuned(self, candidate: Candidate, data: Labelled, seed: int, every: int) -> list[Record]:
        """A U-Net, backbone and decoder learning alike, from every so-many-th training image."""
        records = []
        for train, judged in self.splits(data, "patients", folds=(0, 2)):
            model = u_net(candidate, data, train[seed % every :: every], seed, FIT)
            records += [_record(data, number, model.predict(data.image(number))) for number in judged]
        return records

    def supervised(self, candidate: Candidate, seed: int) -> Candidate:
        """What masks alone can teach: the backbone of a U-Net that learned all of the training patients' for long."""
        if not self.test:
            raise UserError("supervised has seen the masks of all training patients: judge it with --test")
        half = Labelled.open(self.folder / "glas-half")
        model = u_net(candidate, half, half.train("patients"), seed, BOUND)
        weights = {name: tensor.clone() for name, tensor in model.pyramid.backbone.net.state_dict().items()}
        return replace(candidate, label="supervised", origin="supervised", weights=weights)


def u_net(candidate: Candidate, data: Labelled, images: list[int], seed: int, learning: FitConfig) -> Segmenter:
    """A U-Net on a candidate's backbone, fine-tuned on some images."""
    torch.manual_seed(seed)
    config = SemanticsConfig(learning, crop=128)
    model = Segmenter(config, candidate.build(seed), len(data.pixel_names), None, candidate.mean, candidate.std)
    alter = partial(cropped, side=config.crop, symmetries=config.symmetries)
    examples = Examples(data, alter, class_target, seed)
    engine = Engine(workers=0, log_every=learning.planned(0), save_every=10_000)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, examples, images, learning, Path(folder), "", engine)
    return model


def _record(data: Labelled, number: int, called: torch.Tensor) -> Record:
    found = FAMILIES["probe"].record(data.pixel_classes(number, data.mask(number)), called, data.ignored)
    return {"case": data.items[number].source or data.items[number].name, "dice": found["dice"]}


def _by_case(records: list[Record]) -> Cases:
    defined = [record for record in records if record["dice"] is not None]
    cases = sorted({record["case"] for record in defined})
    dices = {case: [100 * record["dice"] for record in defined if record["case"] == case] for case in cases}
    return {case: (round(sum(some) / len(some), 3), len(some)) for case, some in dices.items()}


@torch.no_grad()
def cells_health(candidate: Candidate, tiles: Index, seed: int, size: int) -> dict[str, float]:
    """Of 256 tiles under all symmetries: correspondence where place misleads, effective rank, variance within tiles."""
    numbers = torch.tensor(spaced(range(len(tiles)), 256))
    images = torch.stack([F.interpolate(tiles.read(int(n))[None], (224, 224))[0] for n in numbers])
    look = ViewConfig(size=size, area=(0.1, 1.0), symmetries="all", mean=candidate.mean, std=candidate.std)  # type: ignore[arg-type]
    batch = sample_views(images, look, seed=1, index=numbers)
    backbone = candidate.build(seed, cell_stride=16)
    if candidate.origin == "random":
        backbone.train()  # it has no statistics of its own
    grids = [backbone(view.images) for view in (batch.first, batch.second)]
    cells = tuple(grids[0].shape[2:])
    own, other = (grid.flatten(2).mT.float() for grid in grids)
    match = overlap(batch.first.crop, batch.second.crop, cells)
    shared = match.fractions() * match.weight[:, :, None]
    found, chance = diagnostics.correspondence(own, other, diagnostics.displaced(shared))
    return {
        "displaced": found,
        "displaced_chance": chance,
        "effective_rank": diagnostics.effective_rank(own.flatten(0, 1)[::7]).item(),
        "within_tile": diagnostics.within_tile(own).item(),
    }
