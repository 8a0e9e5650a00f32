"""JSON and XML files in; what is neither ends in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from colocate.errors import UserError


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError if it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another, or mend this") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or is cut short ({error}): export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. Raises UserError if it cannot be read or is no XML."""
    try:
        return ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another, or mend this") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no XML, or is cut short ({error}): get it again") from error
