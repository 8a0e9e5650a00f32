"""Several processes against one: the same losses, gradients, queues and key encoder."""

from __future__ import annotations

import copy
import csv
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.models.resnet import BasicBlock
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks import scaling
from colocate.base.distributed import Shuffle, as_in_first, first_of_all, from_all
from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.core.settings import ViewConfig
from colocate.core.views import Batch, View, sample_views
from colocate.methods.method import Method
from colocate.training import checkpoint
from colocate.training.journal import read_journal
from colocate.training.loop import build_method
from colocate.training.probes import settle_batch_norm
from colocate.training.recipe import EncoderConfig
from tests.tiny import METHODS, double, each_view, tiny_recipe, write_tiles

FEW = ("plm", "plm-vicregl", "plm-concl", "prototypes", "distil")  # one of each kind
# By the number of processes. Batch norm takes each process's own statistics otherwise, which differ.
CASES = {
    2: [*((name, "frozen") for name in METHODS if name not in FEW), ("plm", "frozen"), ("plm", "synchronised")],
    4: [(name, "synchronised") for name in FEW],
}
VIEWS = ViewConfig(size=64, symmetries="all", local_views=1, local_size=32, reference=True)


def batches() -> list[Batch]:
    """In float64, so that what differs is no rounding."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return [each_view(sample_views(tiles, VIEWS, seed=step, epoch=step), double) for step in range(3)]


def share(batch: Batch, rank: int, world: int) -> Batch:
    count = len(batch.tiles) // world
    part = slice(count * rank, count * (rank + 1))
    views = each_view(batch, lambda view: View(view.images[part], view.crop.select(part)))
    return views._replace(tiles=batch.tiles[part])


def state_after(method: Any, inner: torch.nn.Module, steps: list[Batch]) -> dict[str, Any]:
    """Losses of a few steps of plain gradient descent, and where they lead."""
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.01)
    losses = []
    for batch in steps:
        optimizer.zero_grad()
        terms = method(batch)
        terms.total().backward()
        optimizer.step()
        known = [term.detach() for term in terms.terms.values()]
        losses.append(torch.stack(known))
    return {"losses": torch.stack(losses), "state": inner.state_dict()}


def fresh(name: str, norm: str) -> Method:
    encoder = EncoderConfig("test_resnet", sync_norm=norm == "synchronised")
    method = build_method(tiny_recipe(Path(), Path(), method=METHODS[name], encoder=encoder)).double()
    return method.train(norm == "synchronised")


def steps_of_each(rank: int, world: int, folder: str) -> None:
    for name, norm in CASES[world]:
        method = fresh(name, norm)
        parallel = DistributedDataParallel(method, broadcast_buffers=False)
        after = state_after(parallel, method, [share(batch, rank, world) for batch in batches()])
        torch.save(after, f"{folder}/{name}-{norm}-{rank}.pt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(work: Callable[..., None], world: int, *arguments: object) -> None:
    """Do work in a group of several processes: its rank and the arguments are given to each."""
    mp.set_forkserver_preload([__name__])  # torch is imported once, not by each process
    mp.start_processes(in_group, (world, free_port(), work, arguments), nprocs=world, start_method="forkserver")


def in_group(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work(rank, *arguments)
    dist.destroy_process_group()


PICTURES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def probing_alone(rank: int, folder: str) -> None:
    if rank == 0:
        network = fresh("moco-v2", "synchronised").backbone.float()
        torch.save(settle_batch_norm(network, PICTURES).state_dict(), f"{folder}/settled.pt")


def shuffled_halves(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    key = fresh("plm", "frozen").train().key
    for part in key.modules():
        if isinstance(part, BasicBlock):
            part.zero_init_last()  # brightness then passes straight through
    seen: list[Tensor] = []
    key.encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))  # type: ignore
    images = torch.arange(8.0, dtype=torch.float64).view(8, 1, 1, 1).expand(8, 3, 64, 64)[
        4 * rank : 4 * rank + 4
    ] + torch.rand(3, 64, 64)
    features = key(images)
    torch.save({"seen": seen[0].mean((1, 2, 3)).floor(), "field": features.field}, f"{folder}/shuffled-{rank}.pt")


def mix_four(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    with pytest.raises(UserError, match="3 views per device cannot be mixed evenly among 4 devices"):
        Shuffle(3, torch.device("cpu"))
    for count in (2, 8, 12):
        own = torch.arange(count) + 100 * rank
        images = own.float()[:, None, None, None] + torch.rand(1, 3, 4, 4)
        shuffle = Shuffle(count, torch.device("cpu"))
        mixed = shuffle.mixed(images.contiguous(memory_format=torch.channels_last))
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(shuffle.back(mixed), images)
        assert torch.equal(shuffle.back(shuffle.mixed(own)), own)
        torch.save(shuffle.mixed(own), f"{folder}/mixed-{count}-{rank}.pt")
    assert first_of_all(torch.tensor((-1, 7, 5, -1)[rank])) == 5
    assert first_of_all(torch.tensor(-1)) == -1
    norm = torch.nn.BatchNorm2d(3)
    norm(images)
    own = norm.state_dict()["running_mean"].clone()
    as_in_first(norm)
    dist.broadcast(own, 0)
    assert torch.equal(norm.state_dict()["running_mean"], own)
    as_in_first(torch.nn.LayerNorm(3))  # without any a step of ConCL on several devices failed
    assert from_all(["a"] * rank) == ["a"] * 6


def count_sent(rank: int, folder: str) -> None:
    """Bytes that one PLM step sends, but for its gradients."""
    exchange, gather, sent = dist.all_to_all_single, dist.all_gather_single, {"exchanged": 0.0, "gathered": 0.0}

    def exchanging(output: Tensor, own: Tensor, group: Any = None) -> None:
        members = dist.get_world_size(group)
        sent["exchanged"] += own.nbytes * (members - 1) / members
        exchange(output, own, group=group)

    def gathering(output: Tensor, own: Tensor) -> None:
        sent["gathered"] += own.nbytes * 3
        gather(output, own)

    dist.all_to_all_single, dist.all_gather_single = exchanging, gathering
    method = build_method(tiny_recipe(Path(), Path(), method=METHODS["plm"]))
    tiles = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    losses = method(sample_views(tiles, ViewConfig(size=64)))
    sizes = {
        "cells": losses.query.grid[0],
        "channels": losses.query.field.shape[2],
        "width": losses.query.whole.shape[1],
    }
    torch.save(sent | sizes, f"{folder}/sent-{rank}.pt")


def one_of_two(rank: int, folder: str) -> None:
    steps_of_each(rank, 2, folder)
    shuffled_halves(rank, folder)
    probing_alone(rank, folder)  # last: the other one is gone meanwhile


def one_of_four(rank: int, folder: str) -> None:
    steps_of_each(rank, 4, folder)
    mix_four(rank, folder)
    count_sent(rank, folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have computed."""
    folder = tmp_path_factory.mktemp("two")
    together(one_of_two, 2, str(folder))
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four have."""
    folder = tmp_path_factory.mktemp("four")
    together(one_of_four, 4, str(folder))
    return folder


def check_steps(folder: Path, world: int) -> None:
    for name, norm in CASES[world]:
        results = [torch.load(folder / f"{name}-{norm}-{rank}.pt", weights_only=True) for rank in range(world)]
        method = fresh(name, norm)
        before = copy.deepcopy(method.state_dict())
        alone = state_after(method, method, batches())
        found = torch.stack([one["losses"] for one in results]).mean(0)
        torch.testing.assert_close(found, alone["losses"], msg=lambda why, name=name: f"{name}: {why}")
        for key, tensor in alone["state"].items():
            for one in results[1:]:
                assert torch.equal(one["state"][key], results[0]["state"][key]), (name, key)
            torch.testing.assert_close(results[0]["state"][key], tensor, msg=f"{name}: {key}")
        moved = [key for key, tensor in alone["state"].items() if not torch.equal(before[key], tensor)]
        remembers = "vicregl" not in name and name not in ("distil", "cells")
        assert any(key.endswith("vectors") or key == "past" for key in moved) == remembers, name
        assert ("past_prototypes.vectors" in moved) == ("concl" in name), name


@pytest.mark.slow
def test_two_processes_compute_what_one_does(two: Path) -> None:
    check_steps(two, 2)


@pytest.mark.slow
def test_a_probe_of_one_process_waits_for_no_other(two: Path) -> None:
    found = torch.load(two / "settled.pt", weights_only=True)
    alone = settle_batch_norm(fresh("moco-v2", "frozen").backbone.float(), PICTURES).state_dict()
    torch.testing.assert_close(found, alone)


@pytest.mark.slow
def test_the_key_batch_is_shuffled_over_processes_and_put_back(two: Path) -> None:
    parts = [torch.load(two / f"shuffled-{rank}.pt", weights_only=True) for rank in (0, 1)]
    seen = torch.cat([part["seen"] for part in parts])
    assert sorted(seen.tolist()) == list(range(8))
    assert set(parts[0]["seen"].tolist()) != {0.0, 1.0, 2.0, 3.0}
    # Brighter images have larger features in this network or smaller ones, in order: they came back in place.
    level = torch.cat([part["field"] for part in parts]).flatten(1)
    alike = torch.cdist(level, level)
    assert (alike[0, 1] < alike[0, 7]) and (alike[7, 6] < alike[7, 0])


@pytest.mark.slow
def test_four_processes_compute_what_one_does(four: Path) -> None:
    check_steps(four, 4)


@pytest.mark.slow
def test_every_process_gets_as_many_views_of_each_other(four: Path) -> None:
    for count, group in ((2, 2), (8, 4), (12, 4)):
        mixed = [torch.load(four / f"mixed-{count}-{rank}.pt") for rank in range(4)]
        assert sorted(torch.cat(mixed).tolist()) == [view + 100 * rank for rank in range(4) for view in range(count)]
        for rank, views in enumerate(mixed):
            of = (views // 100).bincount(minlength=4)
            first = rank // group * group
            assert of.tolist() == [count // group if first <= other < first + group else 0 for other in range(4)]
        assert count < 8 or any(views.tolist() != views.sort().values.tolist() for views in mixed)


@pytest.mark.slow
def test_a_step_sends_what_the_estimate_for_many_devices_says(four: Path) -> None:
    for rank in range(4):
        found = torch.load(four / f"sent-{rank}.pt")
        sizes = {name: found[name] for name in ("cells", "channels", "width")}
        said = scaling.to_device(scaling.Setting(1, 1, 0, batch=6, size=64, **sizes), 4)
        assert found["exchanged"] == said["views"] + said["features"]
        assert found["gathered"] == said["queues"]


TINY = "--views.size 64 --batch 8 --steps 8 --workers 0 --accelerator cpu --devices 2 --journals --log-every 4"
TINY += " --method.norm-group 4"


def words_for_two(folder: Path, most: str) -> list[str]:
    """To pretrain on two processes, a quarter of the tiles no pictures."""
    tiles = write_tiles(folder / "tiles")
    for number in range(0, 20, 4):
        (tiles / f"{number:02}.png").write_bytes(b"no picture")
    words = f"pretrain plm-small --data {tiles} --out {folder}/run --max-skipped {most} --backbone test_resnet"
    return f"{words} {TINY}".split()


def as_of_torchrun(rank: int, port: int, folder: str, words: list[str]) -> None:
    """The command in the surroundings that torchrun gives it; what it says on stderr is in a file."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in found.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    torch.set_num_threads(1)
    with Path(folder, f"said-{rank}").open("w") as said, redirect_stderr(said):
        main(words)


def exit_codes(folder: Path, words: list[str]) -> list[int | None]:
    mp.set_forkserver_preload([__name__])
    given = (free_port(), str(folder), words)
    running = mp.start_processes(as_of_torchrun, given, 2, join=False, daemon=True, start_method="forkserver")
    assert running is not None
    for process in running.processes:
        process.join(300)
    return [process.exitcode for process in running.processes]


def skipped_tiles(folder: Path) -> list[str]:
    with (folder / "run" / "skipped.csv").open(newline="") as file:
        return [row["tile"] for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_the_command_runs_on_two_processes(tmp_path: Path, torchrun: bool) -> None:
    words = words_for_two(tmp_path, "0.5")
    if torchrun:
        assert exit_codes(tmp_path, words) == [0, 0]
        said = (tmp_path / "said-0").read_text()
    else:
        command = [sys.executable, "-m", "colocate", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        said = done.stderr
        assert done.returncode == 0, said[-2000:]
    assert "deprecated" not in said
    run = tmp_path / "run"
    assert [row["step"] for row in read_journal(run)] == [4, 8]
    state = checkpoint.load_checkpoint(checkpoint.checkpoints(run / "checkpoints")[-1])
    assert int(state["method"]["past_wholes.position"]) == 64  # both processes' keys, eight times
    assert (run / "backbone.safetensors").exists()
    skipped = skipped_tiles(tmp_path)
    assert len(skipped) == len({*skipped}) == 5


@pytest.mark.slow
def test_unreadable_tiles_of_all_processes_count_together(tmp_path: Path) -> None:
    """Each process counted its own ones, and the others ended with a traceback or waited for it."""
    assert exit_codes(tmp_path, words_for_two(tmp_path, "0.1")) == [2, 2]
    skipped = skipped_tiles(tmp_path)
    assert 2 < len(skipped) == len({*skipped})
    for rank in range(2):
        said = (tmp_path / f"said-{rank}").read_text()
        assert f"{len(skipped)} of 20 tiles cannot be read, more than 10.00%" in said and "Traceback" not in said
