"""A recipe that trains in seconds, and the tiles for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colocate.core.settings import ViewConfig
from colocate.core.views import Batch, View
from colocate.methods.rules import MostSimilar, Overlap
from colocate.methods.settings import (
    ConCLConfig,
    DistilConfig,
    MethodConfig,
    MoCoConfig,
    PrototypesConfig,
    VICRegLConfig,
)
from colocate.training.recipe import EncoderConfig, MachineConfig, Recipe

MOCO = MoCoConfig(match=Overlap(), queue_length=20, momentum=0.9, hidden=16, width=8, norm_group=4)
VICREGL = VICRegLConfig(width=16, cells_width=8, best=3, best_local=2)
METHODS: dict[str, MethodConfig] = {
    "moco-v2": replace(MOCO, match=None, dense=0.0),
    "densecl": replace(MOCO, match=MostSimilar(), both_ways=False, align=False),
    "plm": MOCO,
    "cells": replace(MOCO, negatives="cells", norm=True, dense=1.0),
    "vicregl": VICREGL,
    "plm-vicregl": replace(VICREGL, location=Overlap()),
    "concl": ConCLConfig(replace(MOCO, match=None, dense=0.0), concepts=3, warmup_epochs=1),
    "plm-concl": ConCLConfig(MOCO, concepts=3, warmup_epochs=1),
    "prototypes": PrototypesConfig(prototypes=6, memory=40, momentum=0.9, hidden=16, width=8, norm_group=4),
    "distil": DistilConfig("test_efficientnet", "random", norm_group=4),
}


UNIQUE = "0123456789abcdef" * 2  # in the name of a file that is being written


def write_tiles(folder: Path, count: int = 20, size: int = 40) -> Path:
    """Random smooth colour pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def each_view(batch: Batch, change: Callable[[View], View]) -> Batch:
    """The batch with every one of its views changed."""
    first, second, *local = map(change, (batch.first, batch.second, *batch.locals))
    reference = batch.reference and change(batch.reference)
    return batch._replace(first=first, second=second, locals=tuple(local), reference=reference)


def double(view: View) -> View:
    return view._replace(images=view.images.double())


def tiny_recipe(data: Path, out: Path, **changes: Any) -> Recipe:
    """PLM with timm's own test network: a few batches of eight tiles; `changes` replace fields of the recipe."""
    recipe = Recipe(
        name="tiny",
        method=MOCO,
        encoder=EncoderConfig("test_resnet"),
        views=ViewConfig(size=64, symmetries="all", stain=0.05),
        machine=MachineConfig("cpu", workers=0, log_every=1, save_every=2, journals=()),
        data=str(data),
        out=str(out),
        batch=8,
        steps=6,
    )
    return replace(recipe, **changes)
