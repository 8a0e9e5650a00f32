"""What stands beside a slide's predictions: the settings that decide them, and whether they are all there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ..errors import UserError
from ..files import write_atomically
from ..text import changes
from .outline_files import beside

ENDINGS = (".geojson", ".csv", ".png", ".tif")


@final
class Marker:
    """SLIDE.json: written with the settings before anything else, and with the results after all else."""

    def __init__(self, place: Path, settings: Mapping[str, Any]) -> None:
        self.place = place
        self.path = beside(place, ".json")
        self.settings = json.loads(json.dumps(settings))

    def finished(self) -> bool:
        """Whether the slide is done.

        Raises:
            UserError: its files are of other settings, or of someone else.
        """
        if not self.path.exists():
            if there := [path for ending in ENDINGS if (path := beside(self.place, ending)).exists()]:
                raise UserError(f"{there[0]} is there and not by `colocate predict`: choose another --out")
            return False
        try:
            stored: Any = json.loads(self.path.read_text())
            settings, finished = dict(stored["settings"]), bool(stored["finished"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is not by `colocate predict`: choose another --out") from error
        if changed := changes(settings, self.settings):
            raise UserError(f"{self.path} is of other settings ({changed}): choose another --out")
        return finished

    def begin(self) -> None:
        """Files of these settings may be there from now on."""
        self._write({"settings": self.settings, "finished": False})

    def finish(self, results: Mapping[str, Any]) -> None:
        """All files are there."""
        self._write({"settings": self.settings, "finished": True, **results})

    def drop(self) -> None:
        """Remove all of the slide's files."""
        for ending in (*ENDINGS, ".json"):
            beside(self.place, ending).unlink(missing_ok=True)

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))
