"""A callback of PyTorch Lightning that writes a line a step; runs in a peer's environment."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback


class Steps(Callback):
    """Appends {"number", "loss", "waiting"} to a file after each step.

    `waiting` is the share of the time since the last step that went by before the batch was there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.ended, self.began = path, time.perf_counter(), 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, _: Any, outputs: Any, *__: Any) -> None:
        now = time.perf_counter()
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        line = {"number": trainer.global_step, "loss": loss, "waiting": (self.began - self.ended) / (now - self.ended)}
        self.ended = now
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
