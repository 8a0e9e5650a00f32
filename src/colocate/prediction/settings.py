"""Settings of features and predictions. Without torch: options are read before it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, final

import tyro

from colocate.base.errors import UserError
from colocate.slides.settings import check_mpp
from colocate.training.recipe import MachineConfig, Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STRIDE_PX = 32  # of the networks: windows a multiple of it apart see the same cells
WINDOW_PX = {"instances": 1024, "semantics": 512}


@final
@dataclass(frozen=True)
class DeviceConfig:
    """One device; nothing here but `precision` changes results by more than rounding."""

    batch: int = 64
    """Tiles or windows per forward pass."""
    accelerator: str = "auto"
    """auto, cpu, gpu."""
    precision: Precision = "32"
    """Arithmetic of the network."""
    workers: int | None = None
    """Processes that read slides; None: one per available core, at most 8."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch must be 1 or more, not {self.batch}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("slides are processed on one device: instead of torchrun, start the same command on each")
        self._machine()  # checks the rest

    def launch(self) -> Fabric:
        """Raises UserError where it is not there."""
        from colocate.training.run import launch

        return launch(self._machine(), self.precision, self.batch)

    @property
    def readers(self) -> int:
        """Processes that read slides."""
        from colocate.training.run import workers

        return workers(self._machine())

    def _machine(self) -> MachineConfig:
        """The same for pretraining's engine."""
        return MachineConfig(self.accelerator, 1, 1, self.workers, journals=())


@dataclass(frozen=True)
class FeatureConfig:
    """Settings of feature extraction."""

    of: Literal["tiles", "cells"] = "tiles"
    """A vector for each tile (the mean of its cells), or one for each cell of the backbone's grid."""
    mpp: float | None = None
    """Micrometres per pixel at which the backbone sees slides; None: that of the tiles it was pretrained on."""
    size: int = 256
    """Side of a tile in px, a whole number of cells."""
    min_tissue: float = 0.5
    """Least share of tissue in a tile."""
    output_stride: int | None = None
    """Pixels per cell; None: as the backbone was pretrained."""
    device: Annotated[DeviceConfig, tyro.conf.arg(name="")] = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        if self.mpp is not None:
            check_mpp(self.mpp, "--mpp")


@dataclass(frozen=True)
class PredictConfig:
    """Settings of prediction."""

    window: int | None = None
    """Side of the windows, in px at the model's resolution; None: 1024 for objects, 512 for classes. A
    smaller picture is one window of its own size."""
    overlap: int | None = None
    """How much neighbouring windows share, in px; None: a quarter of the window, at least 32."""
    score: float = 0.5
    """Least score of an object."""
    min_area: float = 100.0
    """Least area of a region of one class, in square micrometres."""
    device: Annotated[DeviceConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: DeviceConfig(batch=4))

    def __post_init__(self) -> None:
        window, overlap = 1024 if self.window is None else self.window, self.overlap or 0
        if window < 64 or window % STRIDE_PX or overlap % STRIDE_PX or not 0 <= 2 * overlap <= window:
            raise UserError("window and overlap are multiples of 32 px, window at least 64, overlap at most half of it")
        if not 0 < self.score < 1 or not self.min_area >= 0:
            raise UserError("--score is above 0 and below 1, and --min-area 0 or more")

    def windows(self, task: str) -> tuple[int, int]:
        """Side and overlap of the windows of a task. Raises UserError if they do not fit each other."""
        side = self.window or WINDOW_PX[task]
        quarter = max(STRIDE_PX, side // 4 // STRIDE_PX * STRIDE_PX)
        overlap = quarter if self.overlap is None else self.overlap
        if 2 * overlap > side:
            raise UserError(f"windows of {side} px cannot overlap by {overlap} px: at most by half")
        return side, overlap
