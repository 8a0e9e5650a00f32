"""Dense distillation: cells predict a frozen network's features of the tissue they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from colocate.base.distributed import gather, to_device
from colocate.base.errors import UserError
from colocate.core.geometry import exact
from colocate.core.matching import SharedArea, overlap
from colocate.core.settings import IMAGENET_MEAN, IMAGENET_STD
from colocate.core.views import Batch
from colocate.methods.method import Losses, Method
from colocate.methods.settings import RGB, DistilConfig
from colocate.models.backbones import Backbone, load_backbone, taking
from colocate.models.encoder import Encoder, Features, group_batch_norm, linear


@final
class Teacher(nn.Module):
    """A frozen backbone that takes views as the student is given them.

    They are normalised anew, and enlarged to the next multiple of its stride.
    """

    def __init__(self, backbone: Backbone, mean: RGB, std: RGB) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.mean, self.std = mean, std

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 s s"], mean: RGB, std: RGB) -> Float[Tensor, "b c g g"]:
        """The cells of views that are normalised by `mean` and `std`."""
        stride = self.backbone.stride
        if images.shape[2] % stride:
            size = -(-images.shape[2] // stride) * stride
            images = F.interpolate(images, (size, size), mode="bilinear")
        own, given, own_mean, given_mean = (
            torch.tensor(three).view(3, 1, 1) for three in (self.std, std, self.mean, mean)
        )
        scale, shift = (to_device(three, images) for three in (given / own, (given_mean - own_mean) / own))
        images = images * scale + shift
        with taking(self.backbone, images):
            return self.backbone(images)


@final
class Distil(Method):
    """Cells of every view predict the teacher's cells of the second view, pooled by exact overlap.

    Teacher cells are standardised first, each channel over the cells of the batch, or a few loud channels would be
    all that counts (arXiv:2205.14141 whitens for the same reason). The loss of a cell is 1 - cosine between its linear
    prediction and its tissue's pooled teacher cell. `relations` adds the squared difference of the similarities between
    each two of a tile's cells, the student's and the teacher's (pair-wise distillation, arXiv:1903.04197, equation 1).
    Both are weighted by the share of a cell that the teacher saw. b tiles, n student and m teacher cells.
    """

    def __init__(self, student: Encoder, teacher: Teacher, relations: float) -> None:
        super().__init__()
        self.query = student
        self.teacher = teacher
        self.relations = relations
        facts = self.backbone.facts
        self.mean, self.std = facts.get("mean", IMAGENET_MEAN), facts.get("std", IMAGENET_STD)
        # The teacher's weights are a file that is there already: checkpoints leave them out.
        self.register_state_dict_post_hook(_without_teacher)
        self.register_load_state_dict_pre_hook(_with_teacher)

    def forward(self, batch: Batch) -> Losses:
        views = (batch.first, *batch.locals, batch.second)
        students: list[Features] = [self.query(view.images) for view in views]
        grid = self.teacher(batch.second.images, self.mean, self.std)
        with torch.autocast(grid.device.type, enabled=False):
            target = standardised(exact(grid.flatten(2).mT))
            shape = (grid.shape[2], grid.shape[3])
            terms = [
                self.distance(student, target, overlap(view.crop, batch.second.crop, student.grid, shape))
                for view, student in zip(views, students, strict=True)
            ]
        return Losses({"cells": torch.stack(terms).mean()}, students[0], students[-1])

    def distance(self, student: Features, target: Float[Tensor, "b m t"], match: SharedArea) -> Float[Tensor, ""]:
        """Of one view: the mean over all cells, and over all pairs of a tile's cells, of weight x loss."""
        assert student.cells is not None
        weight = to_device(match.weight.to(target.dtype), target.device)
        pooled = F.normalize(match.pool(target), dim=2)
        loss = (weight * (1 - (F.normalize(exact(student.cells), dim=2) * pooled).sum(2))).mean()
        if not self.relations:
            return loss
        own = F.normalize(standardised(exact(student.field)), dim=2)
        differ = (own @ own.mT - pooled @ pooled.mT).square()
        return loss + self.relations * (weight[:, :, None] * weight[:, None, :] * differ).mean()


def standardised(cells: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Every channel with mean 0 and variance 1 over the cells of the batch, on all processes together."""
    everyone = gather(cells.detach())
    spread, mean = torch.var_mean(everyone, (0, 1), correction=0)
    return (cells - mean) / (spread + 1e-5).sqrt()


def _without_teacher(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


def _with_teacher(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, Distil)
    state |= {f"{prefix}teacher.{name}": tensor for name, tensor in module.teacher.state_dict().items()}


def build(config: DistilConfig, backbone: Backbone, forwards_per_step: int = 1) -> Distil:
    """The method around a backbone, with the teacher's weights."""
    group_batch_norm(backbone, config.norm_group)
    teacher = find_teacher(config)
    head = linear(backbone.channels, teacher.backbone.channels)
    return Distil(Encoder(backbone, whole=nn.Identity(), cells=head), teacher, config.relations)


def find_teacher(config: DistilConfig) -> Teacher:
    """The teacher with its weights and normalisation.

    Raises:
        UserError: no such network or file, or weights that do not fit.
    """
    if config.by_run:
        if config.weights != DistilConfig.weights:
            raise UserError(f"method.weights {config.weights}: the run {config.teacher} teaches with its own")
        backbone = load_backbone(Path(config.teacher).expanduser())
        look: dict[str, Any] = backbone.facts
    else:
        backbone = Backbone(config.teacher)
        backbone.load(config.weights)
        look = backbone.published_look
    return Teacher(backbone, config.mean or tuple(look["mean"]), config.std or tuple(look["std"]))
