"""The run-time type checker of the tests: beartype, with an int passing for a float as it does for pyright."""

import ast
import inspect
from types import ModuleType

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))


def name_types(module: ModuleType) -> None:
    """Import what a module names for type checkers alone (under TYPE_CHECKING): ours looks names up in the module."""
    for part in ast.parse(inspect.getsource(module)).body:
        if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(part.body, []), str(module.__file__), "exec"), vars(module))
