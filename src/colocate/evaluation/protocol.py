"""Evaluate backbones on a data set, seed by seed; a result is written once and not computed twice."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import date
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from colocate.base.errors import UserError
from colocate.base.files import alone, read_json, write_atomically
from colocate.base.rng import uniforms
from colocate.base.text import Terminal, counted
from colocate.data.loader import spaced
from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import Candidate
from colocate.evaluation.contours import borders
from colocate.evaluation.leakage import check, refuse, tiles_of
from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.results import BackboneFacts, Findings
from colocate.evaluation.saved import is_kept, keep_model
from colocate.evaluation.settings import (
    METRICS,
    MOST,
    OBJECTS,
    VERSION,
    ContoursConfig,
    FitConfig,
    InstancesConfig,
    ProbeConfig,
    Protocol,
    SemanticsConfig,
    Task,
    name_of,
)
from colocate.evaluation.tasks import Outcome, Overlays, Trial, check_stages, run

RESULT, PREDICTIONS = "result.json", "predictions.json"


def instances_for(data: Labelled) -> InstancesConfig:
    """Default settings of instance segmentation on a data set.

    GlaS: 5,000 steps at a short side of 400 to 522 px. CRAG: 15,000 steps at 768 to 1,024 px, tested at 768.
    Others: GlaS's, at the images' own median short side (training images down to 0.77 of it, as on GlaS).
    """
    if data.prepared_as == "crag":
        fit = FitConfig(steps=15_000, warmup=1000 / 15_000, drops=(10_000 / 15_000, 13_000 / 15_000))
        return InstancesConfig(fit, short_side=(768, 1024), test_short_side=768)
    if data.prepared_as == "glas":
        return InstancesConfig()
    side = int(median(min(item.height, item.width) for item in data.items))
    low = round(side * 400 / 522)
    return replace(InstancesConfig(), short_side=(low, side), test_short_side=side, long_side=max(1333, 3 * side))


def semantics_for(data: Labelled) -> SemanticsConfig:
    """Default settings of semantic segmentation on a data set.

    20 epochs, AdamW 0.0005, weight decay 0.02, batch 32, crops of 256 px (or what the images have), as for BCSS.
    On BCSS itself the encoder stays frozen, as in the published code; elsewhere it is tuned.
    """
    return SemanticsConfig(crop=_crop(data), encoder="frozen" if data.prepared_as == "bcss" else "tuned")


def contours_for(data: Labelled) -> ContoursConfig:
    """Default settings of contours on a data set.

    What has not half the area inside of its border that all but a twentieth of its objects have is no object: pieces
    of the background are often called one. Only images that every split trains on are asked.
    """
    usual = ContoursConfig(crop=_crop(data))
    masks = (data.mask(number).numpy() for number in spaced(data.always_train, 200))
    inside = (np.where(borders(mask, usual.border), 0, mask) for mask in masks)
    areas = [area for ids in inside for area in np.bincount(ids.ravel())[1:].tolist() if area]
    if len(areas) < 2:
        return usual
    # Inclusive: of few objects the other kind would go on below the smallest, and below 0.
    return replace(usual, smallest=max(1, round(quantiles(areas, n=20, method="inclusive")[0] / 2)))


USUAL = {"instances": instances_for, "contours": contours_for, "semantics": semantics_for}
"""By task."""


def _crop(data: Labelled) -> int:
    """The side of training crops, in px: 256, or what the images have."""
    side = int(median(min(item.height, item.width) for item in data.items))
    return min(256, max(32, side // 32 * 32))


def evaluate(task: Task, protocol: Protocol, candidates: Sequence[Candidate]) -> list[Path]:
    """Judge backbones, seed by seed; returns the results' files. What is there already is not computed again, and what
    another process is at work on is waited for.

    Raises:
        UserError: data that do not serve, or test images that a backbone or decoder would have learned from.
        Interrupted: stopped; the same call goes on.
    """
    if isinstance(task, ProbeConfig) and protocol.engine.precision != "32":
        raise UserError(f"a probe computes in float32: leave --precision {protocol.engine.precision} out")
    data = Labelled.open(protocol.data)
    scheme = protocol.split or next(iter(data.schemes), "")
    if not data.train(scheme) or not data.test(scheme):
        raise UserError(f"{protocol.data}: split {scheme!r} has no training or no test images")
    if METRICS[name_of(task)] == OBJECTS and data.kind != "instances":
        raise UserError(f"{data.name} has no instances, only classes of pixels: colocate evaluate semantics")
    for candidate in candidates:
        check_stages(task, candidate)
    data.verify()  # results and hashes are known by what the data set was
    findings = {}
    for candidate in candidates:
        index = None if candidate.path is None else tiles_of(candidate.path)
        findings[candidate.label] = check(data, scheme, index, candidate.origin)
        refuse(findings[candidate.label], protocol.allow_leakage)
    terminal = Terminal()
    files = []
    for seed in range(protocol.first_seed, protocol.first_seed + protocol.seeds):
        for candidate in candidates:
            train = some_of(data, data.train(scheme), protocol.fraction, seed)
            trial = _trial(task, protocol, candidate, data, scheme, train, seed)
            who = f"{candidate.label}, seed {seed}"
            files.append(trial.folder / RESULT)
            if _is_done(task, protocol, trial):
                terminal.say(f"{who}: {files[-1]} is there")
                _tidy(trial.folder)
                continue
            with alone(trial.folder, wait=True):
                if not _is_done(task, protocol, trial):  # by whom was waited for
                    terminal.say(f"{name_of(task)}: {who}: {counted(len(train), 'training image')}")
                    _compute(task, protocol, trial, findings[candidate.label])
    return files


def _is_done(task: Task, protocol: Protocol, trial: Trial) -> bool:
    """True if all that is read again is there: the result, objects that were found, and the model if it is kept."""
    file = trial.folder / RESULT
    known = read_json(file, "result of `colocate evaluate`") if file.exists() else {}
    return (
        isinstance(known, dict)
        and known.get("identity") == trial.identity
        and (METRICS[name_of(task)] != OBJECTS or (trial.folder / PREDICTIONS).exists())
        and (not protocol.keep_models or isinstance(task, ProbeConfig) or is_kept(trial.folder))
    )


def some_of(data: Labelled, train: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Choose a share of the training images, case after case; larger shares contain smaller ones.

    Cases come in an order drawn by the seed, and each one's images too; images without a case are cases of their own.
    """
    if fraction == 1:
        return list(train)
    cases: dict[str, list[int]] = {}
    for number in train:
        cases.setdefault(data.items[number].source or f"image {number}", []).append(number)
    order = uniforms(torch.arange(len(cases)), seed, 1, count=1)[:, 0].argsort().tolist()
    within = dict(zip(train, uniforms(torch.tensor(train), seed, 2, count=1)[:, 0].tolist(), strict=True))
    groups = list(cases.values())
    images = [number for case in order for number in sorted(groups[case], key=within.__getitem__)]
    return sorted(images[: max(1, round(fraction * len(train)))])


def _trial(
    task: Task, protocol: Protocol, candidate: Candidate, data: Labelled, scheme: str, train: list[int], seed: int
) -> Trial:
    identity = {
        "version": VERSION,
        "task": name_of(task),
        "settings": {"config": asdict(task)},
        "precision": protocol.engine.precision,
        "data": data.fingerprint,
        "split": scheme,
        "train": train,
        "backbone": candidate.fingerprint,
        "normalised": [candidate.mean, candidate.std],
        "seed": seed,
    }
    if (counted := getattr(task, "counted", MOST)) > MOST:  # which were 100 at any setting once
        identity["counted"] = counted
    if isinstance(task, ProbeConfig) and data.ignored is not None:  # images of which nothing counts had a score once
        identity["uncounted"] = "left out"
    text = json.dumps(identity, sort_keys=True)
    key = blake2b(text.encode(), digest_size=5).hexdigest()
    share = "" if protocol.fraction == 1 else f"-{protocol.fraction:g}"
    name = f"{name_of(task)}-{data.name}-{scheme}{share}-{candidate.label}-seed{seed}-{key}"
    test = data.test(scheme)
    folder = Path(protocol.out) / name.replace("/", "_")
    return Trial(candidate, data, scheme, train, test, seed, folder, text, protocol.engine)


def _compute(task: Task, protocol: Protocol, trial: Trial, findings: Findings) -> None:
    torch.manual_seed(trial.seed)
    overlays = Overlays(trial.data, trial.test)
    outcome = run(task, trial, overlays)
    overlays.write(trial.folder)
    if METRICS[name_of(task)] == OBJECTS:
        text = json.dumps(outcome.predictions)
        write_atomically(trial.folder / PREDICTIONS, text)
    if protocol.keep_models and not isinstance(task, ProbeConfig) and outcome.model is not None:
        keep_model(trial.folder, task, trial.candidate, trial.data, trial.train, outcome.model)
    text = json.dumps(_result(task, protocol, trial, findings, outcome), indent=1)
    write_atomically(trial.folder / RESULT, text)
    shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)  # of use only while it was not done


def _tidy(folder: Path) -> None:
    """Remove what a process left that was killed when its result was whole already."""
    if (folder / ".lock").exists():  # which goes last
        with suppress(UserError), alone(folder):  # another process is at work, or nothing can be written
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _result(task: Task, protocol: Protocol, trial: Trial, findings: Findings, outcome: Outcome) -> dict[str, Any]:
    data, items = trial.data, trial.data.items
    part_of = {number: part for part, numbers in data.parts(trial.scheme).items() for number in numbers}
    records = [
        {"image": items[number].name, "part": part_of[number], "source": items[number].source} | record
        for number, record in zip(trial.test, outcome.records, strict=True)
    ]
    metrics = METRICS[name_of(task)]
    parts = dict.fromkeys(record["part"] for record in records)
    scores = {part: scores_of(metrics, [record for record in records if record["part"] == part]) for part in parts}
    sources = [{items[n].source for n in numbers} - {""} for numbers in (trial.train, trial.test)]
    return {
        "version": VERSION,
        "identity": trial.identity,
        "task": name_of(task),
        "dataset": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "split": trial.scheme,
            "train": len(trial.train),
            "test": len(trial.test),
            "train_sources": len(sources[0]),
            "test_sources": len(sources[1]),
            "shared_sources": sorted(sources[0] & sources[1]),
            "notes": list(data.notes),
        },
        "backbone": {field.name: getattr(trial.candidate, field.name) for field in fields(BackboneFacts)},
        "settings": asdict(task) | {"precision": protocol.engine.precision},
        "counted": getattr(task, "counted", MOST),
        "fraction": protocol.fraction,
        "seed": trial.seed,
        "leakage": asdict(findings) | {"forced": protocol.allow_leakage and bool(findings.found)},
        "metrics": list(metrics),
        "scores": scores_of(metrics, records),
        "parts": scores if len(scores) > 1 else {},
        "records": records,
        "seconds": {name: round(seconds, 2) for name, seconds in outcome.seconds.items()},
        "versions": {name: version(name) for name in ("colocate", "torch", "torchvision", "timm")},
        "machine": _machine(),
        "date": date.today().isoformat(),
    }


def scores_of(metrics: Sequence[str], records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """All scores of these images' records; None where undefined (JSON has no nan)."""
    scores: dict[str, float | None] = {}
    for name in metrics:
        found = FAMILIES[name].scores([record[name] for record in records])
        scores |= {score: None if value != value else value for score, value in found.items()}
    return scores


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
