"""Checkpoints: whole or not there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .files import write_atomically


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and drop all but the last `keep`."""
    path = folder / f"step{step:09d}.pt"
    write_atomically(path, lambda file: torch.save(state, file))
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(folder.glob("step*.pt"))


def load_checkpoint(path: Path, holding: str = "method") -> dict[str, Any]:
    """A checkpoint's state, on the CPU; only tensors and plain values are unpickled.

    `holding` is the part that tells a pretraining's checkpoint ("method") from a fine-tuning's ("model").

    Raises:
        UserError: cut short, or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is cut short or not a checkpoint: delete it to go on from the one before") from error
    if not isinstance(state, dict) or not {"step", "recipe", holding, "optimizer"} <= state.keys():
        raise UserError(f"{path} is not a checkpoint of a colocate run")
    return state
