"""Code of the user's own, by name: `my_module.py:something` or `package.module:something`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from difflib import get_close_matches
from hashlib import blake2b, sha256
from pathlib import Path
from types import FunctionType
from typing import Any

from colocate.base.errors import UserError

_PREFIX = "colocate_outside_"


def load(name: str) -> Any:
    """What a file or an installed module holds under a name.

    Raises UserError: no such file, module or name, or an error in the file or module itself.
    """
    place, _, what = name.rpartition(":")
    module = _from_file(Path(place).resolve()) if place.endswith(".py") else _installed(place, name)
    if not hasattr(module, what):
        close = get_close_matches(what, vars(module), 1)
        raise UserError(f"{place} holds no {what!r}" + (f": did you mean {close[0]}?" if close else ""))
    return getattr(module, what)


def call(name: str) -> Any:
    """What a function of the user's own returns.

    Raises UserError: as `load`, or it is no function, or has an error inside.
    """
    made = load(name)
    if not callable(made):
        raise UserError(f"{name} is not a function")
    try:
        return made()
    except UserError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def name_of(thing: type | FunctionType) -> str:
    """The name that `load` finds a class or function under.

    Raises UserError: nothing could find it, for it stands in no file (a notebook), or within a function or class.
    """
    name, place = thing.__qualname__, thing.__module__
    if place.startswith((_PREFIX, "__main__")):
        try:
            place = str(Path(inspect.getfile(thing)).resolve())
        except (OSError, TypeError):
            place = ""
    if "." in name or not place:
        raise UserError(f"{name} could not be found again: define it in a file, and not within a function or class")
    return f"{place}:{name}"


def sha256_of(thing: type | FunctionType) -> str:
    """The hash of the file that a class or function of the user's own stands in."""
    return sha256(Path(inspect.getfile(thing)).read_bytes()).hexdigest()


def _from_file(path: Path) -> Any:
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and Path(str(main.__file__)).resolve() == path:
        return main  # a script that pretrains is not run a second time
    if not path.is_file():
        raise UserError(f"{path} is not a Python file that could be loaded")
    # With what it says: a file that was edited meanwhile, as beside a notebook, is another module.
    name = _PREFIX + blake2b(str(path).encode() + path.read_bytes(), digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as of any name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise _broken(str(path), error) from error
        raise
    return module


def _installed(place: str, name: str) -> Any:
    unknown = UserError(f"no Python file or installed module {place or name!r}")
    if not all(part.isidentifier() for part in place.split(".")):
        raise unknown
    try:
        return importlib.import_module(place)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise unknown from error
        raise _broken(place, error) from error


def _broken(place: str, error: Exception) -> UserError:
    """What is wrong in the user's own code, and in which of its lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    where = f"{own[-1].filename}, line {own[-1].lineno}" if own else place
    return UserError(f"{where}: {type(error).__name__}: {error} (--debug shows where it came from)")


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen ") or Path(filename).parent.name == "importlib"
