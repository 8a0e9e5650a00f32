"""How each peer is started, and how its journal is read: the command a user would give, with settings that match."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.pretraining.watch import Step

HERE = Path(__file__).parent
QUEUE = 4096
"""Past keys as negatives: what lightly's examples have, and the most that all take."""
Words = list[str | Path]


@dataclass(frozen=True)
class Job:
    """A training of ResNet-18, from random weights."""

    method: str
    data: Path
    out: Path
    threads: int = 1
    workers: int = 0
    size: int = 96
    batch: int = 64
    steps: int = 12
    save_every: int = 1000
    precision: str = "32"
    """32 or bf16-mixed."""
    resume: bool = False


def colocate(python: Path, job: Job) -> Words:
    """`colocate pretrain`."""
    queue = ["--method.queue-length", f"{QUEUE}"] if job.method in ("densecl", "moco-v2", "plm") else []
    return [
        *(python.parent / "colocate", "pretrain", job.method, "--data", job.data, "--out", job.out),
        *("--batch", f"{job.batch}", "--views.size", f"{job.size}", "--steps", f"{job.steps}"),
        *("--workers", f"{job.workers}", "--precision", job.precision, *queue),
        *("--log-every", "1", "--save-every", f"{job.save_every}", *(["--resume"] if job.resume else [])),
    ]


def lightly(python: Path, job: Job) -> Words:
    """The example of its documentation."""
    save = ("--save-every", f"{job.save_every}")
    return [python, HERE / "lightly_loop.py", job.method, *_loop(job), *save]


def solo_learn(python: Path, job: Job) -> Words:
    """What its main_pretrain.py does; it saves after each epoch, the last one alone."""
    return [python, HERE / "solo_learn_loop.py", *_loop(job)]


def _loop(job: Job) -> Words:
    sizes = {"size": job.size, "batch": job.batch, "steps": job.steps, "workers": job.workers, "queue": QUEUE}
    precision = {"32": "32-true"}.get(job.precision, job.precision)
    return [
        *("--data", job.data, "--out", job.out, "--precision", precision),
        *(word for name, value in sizes.items() for word in (f"--{name}", f"{value}")),
        *(["--resume"] if job.resume else []),
    ]


def lightly_train(python: Path, job: Job) -> Words:
    """`lightly-train pretrain`; DINO's six local views at half the size of the others.

    Its default, distillation, starts by downloading a teacher. DenseCL it has, but does not list.
    """
    words = {
        "out": job.out,
        "data": job.data,
        "model": "torchvision/resnet18",
        "method": job.method,
        "epochs": 1 + job.steps * job.batch // 1900,
        "batch_size": job.batch,
        "num_workers": job.workers,
        "accelerator": "cpu",
        "precision": {"32": "32-true"}.get(job.precision, job.precision),
        "transform_args.image_size": f"[{job.size},{job.size}]",
        "trainer_args.max_steps": job.steps,
        "trainer_args.log_every_n_steps": 1,
        "loggers.jsonl.flush_logs_every_n_steps": 1,
        "callbacks.model_checkpoint.every_n_train_steps": job.save_every,
        "resume_interrupted": job.resume,
    }
    if job.method == "densecl":
        words["method_args.memory_bank_size"] = QUEUE
    if job.method == "dino":
        words["transform_args.local_view.view_size"] = f"[{job.size // 2},{job.size // 2}]"
    return [python.parent / "lightly-train", "pretrain", *(f"{name}={value}" for name, value in words.items())]


def read_csv(path: Path) -> list[Step]:
    """colocate's journal.csv."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["crowded"]]  # the last column: the row is whole
    return [Step(int(row["step"]), float(row["loss"]), float(row["waiting"])) for row in rows]


def read_jsonl(path: Path) -> list[Step]:
    """What steps.py writes."""
    return [Step(**json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(path: Path) -> list[Step]:
    """lightly-train's metrics.jsonl, which counts steps from 0; how long data took is said from the second step on."""
    steps = []
    for line in path.read_text().splitlines(keepends=True):
        row = json.loads(line) if line.endswith("\n") else {}
        if "train_loss" in row and "profiling/batch_time" in row:
            waited = row.get("profiling/data_time", 0.0)
            steps.append(Step(row["step"] + 1, row["train_loss"], waited / (waited + row["profiling/batch_time"])))
    return steps


@dataclass(frozen=True)
class Way:
    """How a peer is used."""

    command: Callable[[Path, Job], Words]
    methods: tuple[str, ...]
    journal: str
    """In the output's folder."""
    read: Callable[[Path], list[Step]]
    weights: str
    """The backbone of the last step, in the output's folder."""
    env: dict[str, str] = field(default_factory=dict)


WAYS = {
    "colocate": Way(
        colocate,
        ("densecl", "moco-v2", "vicregl", "plm", "colocate"),
        "journal.csv",
        read_csv,
        "backbone.safetensors",
    ),
    "lightly": Way(lightly, ("densecl", "moco-v2", "vicregl"), "steps.jsonl", read_jsonl, "weights.pt"),
    "lightly-train": Way(
        lightly_train,
        ("densecl", "dino"),
        "metrics.jsonl",
        read_metrics,
        "exported_models/exported_last.pt",
        {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"},
    ),
    "solo-learn": Way(solo_learn, ("moco-v2+",), "steps.jsonl", read_jsonl, "weights.pt"),
}
