"""Code of the user's own, by name: `my_module.py:something` or `package.module:something`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .errors import UserError

_PREFIX = "colocate_outside_"


def load(name: str) -> Any:
    """What a file or an installed module holds under a name.

    Raises:
        UserError: no such file, module or name.
    """
    place, _, what = name.rpartition(":")
    module = _from_file(Path(place).resolve()) if place.endswith(".py") else _installed(place)
    if not hasattr(module, what):
        raise UserError(f"{place} holds no {what!r}")
    return getattr(module, what)


def name_of(thing: type) -> str:
    """The name that `load` finds a class under."""
    place = inspect.getfile(thing) if thing.__module__.startswith((_PREFIX, "__main__")) else thing.__module__
    return f"{place}:{thing.__qualname__}"


def _from_file(path: Path) -> Any:
    name = _PREFIX + blake2b(str(path).encode(), digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file that a recipe could be taken from")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"no Python file or installed module {name!r} that a recipe could be taken from") from error
