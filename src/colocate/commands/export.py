"""`colocate export`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from ..export import Library
from ..export import export as write_for


def export(run: Positional[Path], out: Positional[Path], to: Library = "timm") -> None:
    """Write a run's backbone for timm, torchvision or detectron2.

    Args:
        run: The run folder.
        out: The file: .safetensors or .pth (timm, torchvision), .pkl (detectron2).
        to: The library.
    """
    print(write_for(run, to, out))
