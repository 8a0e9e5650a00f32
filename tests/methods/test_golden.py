"""The step of PLM's reference implementation, reproduced from its published values (float64, small inputs)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from colocate import Crop, overlap
from colocate.core.views import Batch, View
from colocate.methods.moco import MoCo
from colocate.methods.rules import MostSimilar, Overlap
from colocate.methods.settings import MoCoConfig
from colocate.models.encoder import Encoder, projector


@pytest.fixture
def values(golden: Path) -> dict[str, torch.Tensor]:
    with np.load(golden / "plm_densecl.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


def crops(values: dict[str, torch.Tensor], view: int) -> Crop:
    """(top, left, height, width, flip) as fractions of the tile, into signed corners."""
    top, left, height, width, flip = values["crops"][:, view].unbind(1)
    right = left + width
    start, end = torch.where(flip > 0, right, left), torch.where(flip > 0, left, right)
    return Crop.of(torch.stack([top, start, top + height, end], 1))


def load_encoder(encoder: Encoder, values: dict[str, torch.Tensor], prefix: str) -> None:
    for ours, theirs in NAMES.items():
        if ours.startswith("align") and encoder.align is None:
            continue
        tensor = values[f"{prefix}.{theirs}"]
        encoder.get_parameter(ours).data.copy_(tensor.squeeze((-2, -1)) if tensor.ndim == 4 else tensor)


NAMES = {
    f"{ours}.{layer}.{kind}": f"1.{theirs}.{layer}.{kind}"
    for ours, theirs in (("whole", "mlp"), ("cells", "mlp2"))
    for layer in (0, 2)
    for kind in ("weight", "bias")
} | {"align.weight": "2.fc.weight", "align.bias": "2.fc.bias"}


Step = tuple[MoCo, Batch, torch.Tensor]


def method_of(values: dict[str, torch.Tensor], name: str, match: Overlap | MostSimilar, both_ways: bool) -> Step:
    """Our method holding the reference's state, and the batch whose 'images' are the reference's backbone features."""
    align = nn.Linear(16, 16) if both_ways else None
    encoder = Encoder(nn.Identity(), projector(32, 32, 16), projector(32, 32, 16), align).double()
    config = MoCoConfig(
        match=match,
        dense=float(values["plm.lambda"]) if name == "plm" else 0.5,
        both_ways=both_ways,
        align=both_ways,
        temperature=float(values["plm.temperature"]),
        width=16,
        queue_length=64,
    )
    method = MoCo(encoder, config, float(values["plm.momentum"])).double()
    load_encoder(method.query, values, f"{name}.before.encoder_q")
    load_encoder(method.key.encoder, values, f"{name}.before.encoder_k")
    assert method.past_cells is not None
    method.past_wholes.vectors.copy_(values[f"{name}.before.queue"].T)
    method.past_cells.vectors.copy_(values[f"{name}.before.queue2"].T)
    method.past_wholes.used.fill_(True)  # a run under way
    method.past_cells.used.fill_(True)
    features = values["features"].clone().requires_grad_()
    views = [View(features[:, view], crops(values, view)) for view in (0, 1)]
    return method, Batch(views[0], views[1], torch.arange(8)), features


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Within `tolerance` of the tensor's largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_overlaps(values):
    first, second = crops(values, 0), crops(values, 1)
    for name, match in (("query", overlap(first, second)), ("key", overlap(second, first))):
        shares = match.fractions() * match.weight[:, :, None]
        torch.testing.assert_close(shares, values[f"overlap_{name}"], rtol=0, atol=1e-6)


def step_as_published(values: dict[str, torch.Tensor], step: Step, name: str, shares: tuple[str, str]) -> MoCo:
    """Losses, the gradient of the features and both queues after one step; returns the method that took it."""
    method, batch, features = step
    losses = method(batch)
    for ours, part, share in zip(
        (losses.terms["whole"], losses.terms["cells"]), ("whole", "cells"), shares, strict=True
    ):
        torch.testing.assert_close(ours, values[f"{name}.loss_{part}_times_{share}"], rtol=1e-6, atol=0)
    losses.total().backward()
    assert features.grad is not None
    close(features.grad, values[f"{name}.grad_features"], 1e-6)
    assert method.past_cells is not None
    for queue, theirs in ((method.past_wholes, "queue"), (method.past_cells, "queue2")):
        close(queue.vectors, values[f"{name}.after.{theirs}"].T, 1e-6)
        assert queue.position == values[f"{name}.after.{theirs}_ptr"].item()
    return method


def test_plm_losses_gradients_key_encoder_and_queues(values):
    step = method_of(values, "plm", Overlap(), both_ways=True)
    method = step_as_published(values, step, "plm", ("1_minus_lambda", "lambda"))
    for ours, theirs in NAMES.items():
        grad = method.query.get_parameter(ours).grad
        assert grad is not None
        close(grad, values[f"plm.grad.encoder_q.{theirs}"].view_as(grad), 1e-6)
        after = method.key.encoder.get_parameter(ours)
        close(after, values[f"plm.after.encoder_k.{theirs}"].view_as(after), 1e-12)


def test_densecl_losses_gradients_and_queues(values):
    step = method_of(values, "densecl", MostSimilar(), both_ways=False)
    step_as_published(values, step, "densecl", ("half", "half"))
