"""`--probe`: while a backbone is pretrained, ask it now and then what it knows, and keep the one that knew most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from .backbones import Backbone
from .data import Labelled
from .errors import UserError
from .export import write_backbone
from .journal import Journal, read_rows
from .probes.labelled import ProbeConfig, frozen_cells, probe
from .probes.nearest import dice

CONFIG = ProbeConfig("nearest", memory=8000, statistics="images")
MOST_IMAGES = 48  # on either side: a probe should cost seconds
COLUMNS = ("step", "epoch", "dice")


@final
class Watch:
    """RUN/probes.csv, and RUN/best: the backbone of the highest Dice so far.

    Only images that every split of the labelled data trains on are asked about, half of their cases to learn from and
    half to judge by: what is chosen by a test image would be no test any more. The score is the mean Dice, over images,
    of all that is not background; a cell is what the 20 nearest of 8,000 training cells are.

    A run that goes on from `step` drops the rows after it; the best of the rows that stay is only replaced by a better.

    Raises:
        UserError: the folder is no prepared data set, or its training images are of one case.
    """

    def __init__(
        self, run: Path, data: str, every: int, step: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.run, self.every, self.normalisation = run, every, (mean, std)
        self.data = Labelled.open(data)
        self.train, self.judged = _halves(self.data)
        self.journal = Journal(run / "probes.csv", step, COLUMNS)
        self.best = max((row["dice"] for row in read_rows(self.journal.path)), default=-1.0)

    def due(self, step: int, steps: int) -> bool:
        """Whether it is time: after every `every` steps and after the last."""
        return step % self.every == 0 or step == steps

    def look(self, step: int, epoch: float, backbone: Backbone, facts: dict[str, Any]) -> str:
        """Ask, note the answer, keep the backbone if it is the best; returns a sentence. `facts` go with it."""
        config = replace(CONFIG, stride=backbone.stride)
        look = frozen_cells(backbone, self.data, self.train, config, *self.normalisation)
        calls = probe(look, self.data, self.train, self.judged, config, 0)
        scores = []
        for number, found in calls:
            truth = self.data.pixel_classes(number, self.data.mask(number))
            scores.append(dice((found > 0).flatten()[None], (truth > 0).flatten()[None]).item())
        score = sum(scores) / len(scores)
        self.journal.write(step, {"epoch": epoch, "dice": score})
        if score > self.best:
            self.best = score
            write_backbone(self.run / "best", backbone, facts | {"probe": {"data": self.data.name, "dice": score}})
        return f"probe at step {step}: Dice {score:.3f} (best so far {self.best:.3f})"


def _halves(data: Labelled) -> tuple[list[int], list[int]]:
    """Training images of every other case, and of the cases between them; images without a case are their own."""
    train = data.always_train
    cases = sorted({data.items[number].source or data.items[number].path for number in train})
    odd = set(cases[1::2])
    sides: list[list[int]] = [[], []]
    for number in train:
        sides[(data.items[number].source or data.items[number].path) in odd].append(number)
    if not all(sides):
        raise UserError(f"--probe {data.folder}: its training images are of one case or none, which cannot be halved")
    few = [side[:: -(-len(side) // MOST_IMAGES)] for side in sides]
    return few[0], few[1]
