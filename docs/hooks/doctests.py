"""Examples in docstrings (`>>>`) as blocks of code, which Markdown would take for quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*\n).*)*(?:\n\n>>> .*(?:\n(?!\s*\n).*)*)*", re.M)


class Doctests(griffe.Extension):
    """Puts a fence around each run of examples."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe's event: an object with its docstring, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
