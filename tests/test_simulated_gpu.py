"""On a GPU, as far as one can be simulated: nothing mixes devices, no step waits, and the numbers are the CPU's."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.api import load_model
from colocate.core.settings import ProbeConfig
from colocate.core.views import sample_views
from colocate.evaluation.candidates import find_candidate
from colocate.evaluation.protocol import evaluate
from colocate.training.loop import build_method, pretrain
from colocate.training.optim import OptimConfig, build_optimizer
from tests.evaluate.conftest import TASKS, protocol
from tests.evaluate.tissue import write_tissue
from tests.simulated_gpu import simulated_gpu
from tests.test_train import same_run
from tests.tiny import METHODS, tiny_recipe, write_tiles


def test_it_refuses_what_a_gpu_refuses_and_tells_where_the_host_waits() -> None:
    with simulated_gpu() as waited:
        there = torch.ones(3, device="cuda", requires_grad=True)
        with pytest.raises(RuntimeError, match="same device"):
            there.add(torch.ones(3))
        with pytest.raises(TypeError, match="numpy"):
            there.detach().numpy()
        torch.ones(3).pin_memory().to(there, non_blocking=True)
        (there * 2).sum().backward()
        assert waited == [] and there.grad is not None and there.grad.device.type == "cuda"
        assert there.sum().item() == 3 and there.grad.tolist() == [2, 2, 2] and there.cpu().device.type == "cpu"
        torch.ones(3).to("cuda", non_blocking=True)
        assert len(waited) == 4


OTHERS = [name for name in METHODS if name not in ("plm", "moco-v2", "concl")]  # of which plm and plm-concl do all
SLOW = [pytest.param(name, "cuda", marks=pytest.mark.slow) for name in OTHERS]
SLOW += [pytest.param("plm", "mps", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "gpu"), [("plm", "cuda"), *SLOW])
def test_a_step_waits_for_nothing_and_computes_what_a_cpu_does(name: str, gpu: str) -> None:
    def losses(device: str) -> list[float]:
        recipe = tiny_recipe(Path(), Path(), method=METHODS[name])
        views = replace(recipe.views, reference=True, local_views=1, local_size=32)
        method = build_method(recipe).to(device)
        optimizer = build_optimizer(OptimConfig(), method)
        found = []
        for epoch in range(2):
            torch.manual_seed(epoch)
            tiles = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
            batch = sample_views(tiles.to(device), views, epoch=epoch)
            before = len(waited)
            loss = method(batch).total()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert waited[before:] == [] or epoch == 0 or gpu == "mps"
            found.append(loss.item())
        return found

    with nullcontext([]) as waited:
        wanted = losses("cpu")
    with simulated_gpu(gpu) as waited:
        assert losses(gpu) == pytest.approx(wanted, rel=0 if gpu == "cuda" else 1e-5)


@pytest.mark.slow
def test_a_run_is_the_same(tmp_path: Path) -> None:
    """With a probe; stopped and gone on with."""
    data = str(write_tissue(tmp_path / "discs").folder)
    plain = tiny_recipe(write_tiles(tmp_path / "tiles"), tmp_path / "cpu", steps=4, probe=data, probe_every=1.0)
    pretrain(plain)
    with simulated_gpu():
        pretrain(replace(plain, out=str(tmp_path / "gpu")))
    for name in ("probes.csv", "backbone.safetensors", "best/backbone.safetensors"):
        assert (tmp_path / "gpu" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes(), name
    (tmp_path / "gpu" / "checkpoints" / "step000000004.pt").unlink()
    with simulated_gpu():
        pretrain(replace(plain, out=str(tmp_path / "gpu")), resume=True)
    same_run(tmp_path / "cpu", tmp_path / "gpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instances", "contours", "semantics", "linear"])
def test_an_evaluation_is_the_same(name: str, tmp_path: Path) -> None:
    """And so is what its model finds in an image."""
    data, random = write_tissue(tmp_path / "discs"), find_candidate("random", "test_resnet")
    task: Any = TASKS[name]
    if not isinstance(task, ProbeConfig):
        task = replace(task, fit=replace(task.fit, steps=2))
    image = data.image(12).permute(1, 2, 0).numpy()
    results = []
    for device in ("cpu", "gpu"):
        with simulated_gpu() if device == "gpu" else nullcontext([]) as waited:
            (file,) = evaluate(task, protocol(data, tmp_path / device, keep_models=True), [random])
            result = json.loads(file.read_text())
            seen = "" if isinstance(task, ProbeConfig) else str(load_model(file.parent, "cpu").predict(image))
        results.append((result["records"], result["scores"], seen))
        assert (waited != []) == (device == "gpu")
    assert results[0] == results[1]
