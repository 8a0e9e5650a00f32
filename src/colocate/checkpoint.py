"""Checkpoints that are whole or not there, and files written the same way."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from .errors import UserError


def write_atomically(path: Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Write a file under a temporary name, flush it to disk and rename it: readers see all of it or nothing.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        again = "make room; the same command goes on (pretrain: with --resume)"
        raise UserError(f"{path} was not written: {reason}; {again}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and drop all but the last `keep`."""
    path = folder / f"step{step:09d}.pt"
    write_atomically(path, lambda file: torch.save(state, file))
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(folder.glob("step*.pt"))


def load(path: Path, holding: str = "method") -> dict[str, Any]:
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
