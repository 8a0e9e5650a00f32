"""What was measured on: processor, cores, GPU, versions."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from .. import __version__

PACKAGES = ("torch", "torchvision", "timm", "lightning")


@dataclass(frozen=True)
class Machine:
    """The machine that a bench ran on."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    threads: int
    """Threads that torch computes with on the CPU."""
    gpu: str | None
    gpu_memory_bytes: int | None
    versions: dict[str, str]

    @property
    def words(self) -> str:
        """The device and what it stands in."""
        cores = f"{self.cpu}, {self.cores} core{'s' * (self.cores != 1)}"
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}"
        return cores + threads if self.gpu is None else f"{self.gpu} ({cores})"


def this_machine(device: torch.device) -> Machine:
    """The machine, with its GPU if that is what computes."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        gpu=gpu and gpu.name,
        gpu_memory_bytes=gpu and gpu.total_memory,
        versions={"colocate": __version__, "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
    )


def cpu_model() -> str:
    """As the system names it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
