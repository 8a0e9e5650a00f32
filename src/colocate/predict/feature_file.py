"""A slide's features as HDF5, laid out as multiple-instance tools (CLAM, TRIDENT) read it: `features` and `coords`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

import h5py
import numpy as np
from jaxtyping import Float32, Int64

from ..errors import UserError
from ..files import write_atomically
from ..text import changes

Attributes = Mapping[str, Any]
SETTINGS = "settings"


@final
class FeatureFile:
    """Where a slide's features are written: float32 (n, channels), with the int64 (n, 2) places of each.

    HDF5 only lays the file out, the numbers are written to their places by hand: on a full disk HDF5 raises no error
    that could be handled, but ends the process (h5py issue 914).
    """

    def __init__(self, path: Path, settings: Attributes) -> None:
        self.path = path
        self.settings = json.dumps(settings, sort_keys=True)
        """All that decides the numbers."""

    def written(self) -> bool:
        """Whether the file is there.

        Raises:
            UserError: it holds something else, or features of other settings.
        """
        if not self.path.exists():
            return False
        try:
            with h5py.File(self.path) as file:
                stored: Any = json.loads(str(file.attrs[SETTINGS]))
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.path} is no file of colocate's features: choose another --out") from error
        if changed := changes(stored, json.loads(self.settings)):
            raise UserError(f"{self.path} holds features of other settings ({changed}): choose another --out")
        return True

    def write(
        self,
        coords: Int64[np.ndarray, "n 2"],
        batches: Iterable[Float32[np.ndarray, "_ c"]],
        channels: int,
        of_coords: Attributes,
        of_features: Attributes,
        finish: Callable[[Path], object],
    ) -> None:
        """Write the file as the batches come, whole or not at all.

        coords: x and y in level0 pixels. `finish` gets the file's temporary place before it takes its name.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """

        def content(file: Any) -> None:
            path = Path(file.name)
            places = self._lay_out(path, len(coords), channels, of_coords, of_features)
            file.seek(places["coords"])
            file.write(coords.astype("<i8").tobytes())
            file.seek(places["features"])
            rows = 0
            for batch in batches:
                file.write(batch.astype("<f4").tobytes())
                rows += len(batch)
            if rows != len(coords):
                raise ValueError(f"{rows} features for {len(coords)} places")
            file.flush()
            finish(path)

        write_atomically(self.path, content)

    def _lay_out(
        self, path: Path, rows: int, channels: int, of_coords: Attributes, of_features: Attributes
    ) -> dict[str, int]:
        """Make a file with room for everything; returns at which byte each data set begins."""
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with h5py.File(path, "w") as file:
            file.attrs[SETTINGS] = self.settings
            places = {}
            for name, shape, kind, attributes in (
                ("features", (rows, channels), "<f4", of_features),
                ("coords", (rows, 2), "<i8", of_coords),
            ):
                dataset = file.create_dataset(name, shape, kind, dcpl=early)
                dataset.attrs.update(attributes)
                places[name] = dataset.id.get_offset()
        return places
