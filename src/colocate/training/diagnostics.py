"""Health of a pretraining: collapse, rank and correspondence of each logged batch; the probe while training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import read_json
from colocate.core.matching import overlap
from colocate.core.settings import ProbeConfig
from colocate.core.views import Batch
from colocate.datasets.labelled import Labelled
from colocate.methods.method import Losses
from colocate.models.backbones import Backbone
from colocate.training.checkpoint import write_backbone
from colocate.training.journal import Journal, read_rows
from colocate.training.probes import agreement, check_counted, frozen_cells, probe

FEWEST_TILES = 8  # of a device, from which their rank tells anything: of two tiles it is 1, whatever they show
MOST_TILES = 64  # a sample is enough for a curve, and keeps the check cheap at large batches


def feature_std(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean standard deviation of normalised features, times sqrt(d): about 1 when spread out, 0 when collapsed."""
    unit = F.normalize(features.float(), dim=1)
    return (unit - unit.mean(0)).square().sum(0).div(max(1, len(unit) - 1)).sqrt().mean() * unit.shape[1] ** 0.5


def effective_rank(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values (RankMe, arXiv:2210.02885), of centred unit features.

    >>> effective_rank(torch.eye(8)) > 6.9, effective_rank(torch.ones(8, 4) + 1e-7) < 1.1
    (tensor(True), tensor(True))
    """
    unit = F.normalize(features.float(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    if values.sum() <= 1e-5 * len(unit):
        return values.new_ones(())
    share = values / values.sum()
    return (-(share * (share + 1e-12).log()).sum()).exp()


def within_tile(field: Float[Tensor, "b n c"]) -> Float[Tensor, ""]:
    """Share of the variance of normalised cells that lies within tiles: 0 where a tile's cells are all alike.

    >>> within_tile(torch.eye(4).repeat(2, 1, 1)), within_tile(torch.eye(2)[:, None].repeat(1, 3, 1))
    (tensor(1.), tensor(0.))
    """
    unit = F.normalize(field.float(), dim=2)
    within = (unit - unit.mean(1, keepdim=True)).square().sum()
    return within / (unit - unit.mean((0, 1))).square().sum().clamp_min(1e-12)


def correspondence(
    own: Float[Tensor, "b n c"], other: Float[Tensor, "b m c"], shared: Float[Tensor, "b n m"]
) -> tuple[float, float]:
    """How often the other view's most similar cell (cosine) is one that truly overlaps, and how often by chance.

    `shared` holds the true overlap of each pair of cells; cells that the other view did not see do not count. Both are
    nan where no cell was seen.
    """
    seen = shared.sum(2) > 0
    similar = F.normalize(own.float(), dim=2) @ F.normalize(other.float(), dim=2).mT
    best = similar.argmax(2, keepdim=True).to(shared.device)
    hits = shared.gather(2, best).squeeze(2)[seen] > 0
    chance = (shared[seen] > 0).double().mean()
    return hits.double().mean().item(), chance.item()


def displaced(shared: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    """The overlap of those cells alone whose tissue the other view does not show at the same place of its grid.

    Without flips a network that knows nothing but where a cell lies in its view (zero padding tells it) names
    overlapping cells well; among these cells it is always wrong.
    """
    return shared * (shared.diagonal(dim1=1, dim2=2) == 0)[:, :, None]


@torch.no_grad()
def measure(losses: Losses, batch: Batch) -> dict[str, float]:
    """The health of one batch, by the names that the journal uses.

    On one scale for all methods: the backbone's own features, or (feature_std) unit vectors whatever their length.
    What tiles tell together is nan where a device has too few of them.
    """
    few = slice(0, MOST_TILES)
    query, key = losses.query, losses.key
    found = {
        "feature_std": feature_std(query.whole).item() if len(query.whole) > 1 else math.nan,
        "effective_rank": effective_rank(query.field.mean(1)).item() if len(query.field) >= FEWEST_TILES else math.nan,
        "within_tile": within_tile(query.field).item(),
    }
    if key is None:
        return found
    match = overlap(batch.first.crop.select(few), batch.second.crop.select(few), query.grid, key.grid)
    shared = match.fractions() * match.weight[:, :, None]
    accuracy, chance = correspondence(query.field[few], key.field[few], shared)
    found = {"overlap": match.weight.mean().item()} | found
    found |= {"correspondence": accuracy, "correspondence_chance": chance}
    if query.grid == key.grid:
        elsewhere, chance = correspondence(query.field[few], key.field[few], displaced(shared))
        found |= {"displaced": elsewhere, "displaced_chance": chance}
    return found


def warning(measures: Mapping[str, float], batch: int) -> str | None:
    """A sentence where the features look collapsed, else None."""
    if (batch > 1 and measures["feature_std"] < 0.1) or (batch >= FEWEST_TILES and measures["effective_rank"] < 1.5):
        return (
            f"features look collapsed (std {measures['feature_std']:.2f} of 1, effective rank "
            f"{measures['effective_rank']:.1f}): try a lower optim.lr or more warm-up"
        )
    return None


def first_warning(rows: Sequence[Mapping[str, float]], batch: int) -> str | None:
    """The warning of the first row of a journal that deserves one, and whether the last row still does; else None.

    >>> rows = [{"step": step, "feature_std": std, "effective_rank": 20.0} for step, std in ((10, 0.9), (20, 0.04))]
    >>> first_warning(rows, 8)
    'at step 20 features look collapsed (std 0.04 of 1, effective rank 20.0): try a lower optim.lr or more warm-up'
    """
    for row in rows:
        if sentence := warning(row, batch):
            after = "" if warning(rows[-1], batch) else f"; at step {rows[-1]['step']:,.0f} they no longer do"
            return f"at step {row['step']:,.0f} {sentence}{after}"
    return None


CONFIG = ProbeConfig("nearest", memory=8000, statistics="images")
MOST_IMAGES = 48  # on either side: a probe should cost seconds


@final
class OnlineProbe:
    """RUN/probes.csv, and RUN/best: the backbone of the highest Dice so far.

    Only images that every split of the labelled data trains on are asked about, half of their cases to learn from and
    half to judge by: what is chosen by a test image would be no test any more. The score is the mean Dice over the
    images of which something counts, of each the mean over its classes but background, as `colocate evaluate probe` has
    it; a cell is what the 20 nearest of 8,000 training cells are.

    A run that goes on from `step` drops the rows after it, but not the best backbone, which may be of a later one: that
    is only replaced by a better.

    Raises UserError: the folder is no prepared data set, or not the one that the run has asked so far; its training
    images are of one case, or no pixel of those to learn from or to judge by counts.
    """

    def __init__(self, run: Path, data: str, step: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.run, self.normalisation = run, (mean, std)
        self.data = Labelled.open(data)
        self.train, self.judged = _halves(self.data)
        self.journal = Journal(run / "probes.csv", step)
        asked = read_rows(self.journal.path) if self.journal.path.exists() else []
        scores = [row["dice"] for row in asked]
        if (best := run / "best" / "backbone.json").exists():
            before = read_json(best, "backbone of a run")["probe"]
            if before.get("fingerprint", self.data.fingerprint) == self.data.fingerprint:
                scores.append(before.get("dice", -1.0))
            elif asked:
                remedy = f"give the same, or remove {self.journal.path} and {best.parent}"
                raise UserError(f"--probe {data} does not hold what {run} was asked about so far: {remedy}")
        self.best = max(scores, default=-1.0)

    def check(self, backbone: Backbone) -> None:
        """Look at one image. Raises UserError, before any training, if the backbone cannot take it for its size."""
        config = replace(CONFIG, stride=backbone.stride, statistics="own")
        frozen_cells(backbone, self.data, self.train, config, *self.normalisation)(self.train[0])

    def look(self, step: int, epoch: float, backbone: Backbone, facts: dict[str, Any]) -> str:
        """Ask, note the answer, keep the backbone if it is the best; returns a sentence. `facts` go with it."""
        config = replace(CONFIG, stride=backbone.stride)
        look = frozen_cells(backbone, self.data, self.train, config, *self.normalisation)
        calls = probe(look, self.data, self.train, self.judged, config, 0)
        scores = []
        for number, found in calls:
            truth = self.data.pixel_classes(number, self.data.mask(number))
            scores.append(agreement(truth, found, self.data.ignored).dice)
        defined = [score for score in scores if score is not None]
        # Of one at least: `check_counted`. As the journal has it, or a run that goes on would compare another number.
        score = float(f"{sum(defined) / len(defined):.6g}")
        if score > self.best:
            self.best = score
            asked = {"data": self.data.name, "fingerprint": self.data.fingerprint, "dice": score}
            write_backbone(self.run / "best", backbone, facts | {"probe": asked})
        self.journal.write(step, {"epoch": epoch, "dice": score})  # last: what it lists has been seen to
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
    for side in few:
        check_counted(data, side, "training image")
    return few[0], few[1]
