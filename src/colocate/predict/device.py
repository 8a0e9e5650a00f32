"""The device on which networks look at slides, and how it is fed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import final

from lightning.fabric import Fabric

from ..errors import UserError
from ..recipe import MachineConfig, Precision
from ..run import launch, workers


@final
@dataclass(frozen=True)
class DeviceConfig:
    """One device; nothing here but `precision` changes results by more than rounding."""

    batch: int = 64
    """Tiles or windows a forward pass."""
    accelerator: str = "auto"
    """auto, cpu, gpu."""
    precision: Precision = "32"
    """Arithmetic of the network."""
    workers: int | None = None
    """Processes that read slides; None: the cores at hand, at most 8."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch must be 1 or more, not {self.batch}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "slides are looked at on one device: instead of torchrun give each its own slides and --out"
            )
        self._machine()  # checks the rest

    def launch(self) -> Fabric:
        """Raises UserError where it is not there."""
        return launch(self._machine(), self.precision, self.batch)

    @property
    def readers(self) -> int:
        """Processes that read slides."""
        return workers(self._machine())

    def _machine(self) -> MachineConfig:
        """The same for pretraining's engine."""
        return MachineConfig(self.accelerator, 1, 1, self.workers, journals=())
