"""Results that no network has made: records drawn at random, better by as much as is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from colocate.evaluation.settings import METRICS, TASKS


def write_result(
    folder: Path,
    task: str = "probe",
    label: str = "plm",
    seed: int = 0,
    skill: float = 0.5,
    images: int = 24,
    **other: Any,
) -> dict[str, Any]:
    """Write folder/task-label-seed/result.json and return it; `other` replaces fields (nested ones are merged)."""
    result: dict[str, Any] = {
        "version": 1,
        "task": task,
        "dataset": {
            "name": "glas",
            "fingerprint": "f" * 32,
            "split": "official",
            "train": 85,
            "test": images,
            "train_sources": 15,
            "test_sources": 6,
            "shared_sources": ["glas:1", "glas:2"],
            "notes": ["Research only."],
        },
        "backbone": {
            "label": label,
            "architecture": "resnet18",
            "fingerprint": f"of {label}",
            "origin": f"runs/{label}",
            "steps": 100,
            "recipe": label,
        },
        "settings": json.loads(json.dumps(asdict(TASKS[task]()))) | {"precision": "32"},
        "fraction": 1.0,
        "seed": seed,
        "leakage": {"checked": ["names of 24 test images"], "unchecked": ["crops"], "found": [], "forced": False},
        "metrics": list(METRICS[task]),
        "scores": {},
        "parts": {},
        "records": records(task, seed, skill, images),
        "seconds": {"train": 1.0},
        "versions": {"colocate": "0.1.0"},
        "machine": "a CPU",
        "date": "2026-11-25",
    }
    for name, value in other.items():
        result[name] = result[name] | value if isinstance(value, dict) else value
    place = folder / f"{task}-{label}-{seed}-{result['fraction']}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "result.json").write_text(json.dumps(result))
    return result


def records(task: str, seed: int, skill: float, images: int) -> list[dict[str, Any]]:
    """A record an image: three in four of part testA, of six cases; images are as hard for everyone."""
    hard = np.random.default_rng(5).uniform(-0.15, 0.15, images)
    rng = np.random.default_rng([seed, round(1000 * skill)])
    made = {"probe": _probe, "semantics": _semantic, "instances": _instances, "contours": _instances}[task]
    return [
        {
            "image": f"test_{number}",
            "part": "testB" if number % 4 == 3 else "testA",
            "source": f"glas:{number % 6}",
            **made(rng, float(np.clip(skill + hard[number] + rng.normal(0, 0.03), 0.02, 0.98))),
        }
        for number in range(images)
    ]


def _probe(rng: np.random.Generator, skill: float) -> dict[str, Any]:
    positives = int(rng.integers(40, 200))
    shared = int(skill * positives / 2)
    return {"probe": {"dice": 2 * shared / positives, "shared": shared, "positives": positives}}


def _semantic(rng: np.random.Generator, skill: float) -> dict[str, Any]:
    pixels = {name: int(rng.integers(100, 1000)) for name in ("tumour", "stroma", "other")}
    names = list(pixels)
    return {
        "semantic": {
            name: {name: int(skill * count), names[place - 1]: count - int(skill * count)}
            for place, (name, count) in enumerate(pixels.items())
        }
    }


def _instances(rng: np.random.Generator, skill: float) -> dict[str, Any]:
    true, found = int(rng.integers(5, 30)), int(rng.integers(5, 30))
    hits = int(skill * min(true, found))
    words = {kind: ["".join("1" if rng.random() < skill * (1 - step / 14) * ease else "0" for _ in range(found))
                    for step in range(10)] for kind, ease in (("box", 1.0), ("mask", 0.9))}  # fmt: skip
    side = {"area": 1000 * true, "dice": 1000.0 * true * skill, "hausdorff": 1000.0 * true * 150 * (1 - skill)}
    confidence = sorted(rng.random(found).tolist(), reverse=True)
    return {
        "coco": {"1": {"positives": true, "scores": confidence, **words}},
        "glas": {"objects": {"true": true, "found": found, "hits": hits}, "true": side, "found": side},
        "panoptic": {"1": {"tp": hits, "fp": found - hits, "fn": true - hits, "iou": hits * (0.5 + skill / 2)}},
    }
