"""Settings of each way to judge, by data set: the paper's where it has some."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from ..data import Labelled
from .fit import FitConfig
from .instances import InstancesConfig
from .semantics import SemanticsConfig


def instances_for(data: Labelled) -> InstancesConfig:
    """GlaS: 5,000 steps at a short side of 400 to 522 px. CRAG: 15,000 steps at 768 to 1,024 px, tested at 768.

    Others: GlaS's, at the images' own median short side (training images down to 0.77 of it, as on GlaS).
    """
    if data.name == "crag":
        fit = FitConfig(steps=15_000, warmup=1000 / 15_000, drops=(10_000 / 15_000, 13_000 / 15_000))
        return InstancesConfig(fit, short_side=(768, 1024), test_short_side=768)
    if data.name == "glas":
        return InstancesConfig()
    side = int(median(min(item.height, item.width) for item in data.items))
    low = round(side * 400 / 522)
    return replace(InstancesConfig(), short_side=(low, side), test_short_side=side, long_side=max(1333, 3 * side))


def semantics_for(data: Labelled) -> SemanticsConfig:
    """BCSS's: 20 epochs, AdamW 0.0005, weight decay 0.02, batch 32, crops of 256 px (or what the images have).

    On BCSS itself the encoder stays frozen, as in the published code; elsewhere it is tuned.
    """
    side = int(median(min(item.height, item.width) for item in data.items))
    return SemanticsConfig(
        crop=min(256, max(32, side // 32 * 32)), encoder="frozen" if data.name == "bcss" else "tuned"
    )


def smoke_instances() -> InstancesConfig:
    """A quarter of the size and a handful of steps, to see that all is in place: minutes on a CPU."""
    fit = FitConfig(steps=150, batch=4, lr=0.01, warmup=0.1)
    anchors = (8, 16, 32, 64, 128)
    return InstancesConfig(fit, (100, 131), 131, norm="frozen", proposals=64, anchors=anchors)


def smoke_semantics() -> SemanticsConfig:
    """Small crops and few steps, to see that all is in place: a minute on a CPU."""
    fit = FitConfig(steps=60, batch=8, optimizer="adamw", lr=1e-3, weight_decay=0.02, drops=())
    return SemanticsConfig(fit, crop=96)
