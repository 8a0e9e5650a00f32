"""What `colocate COMMAND --help` prints, put where a page says `<!-- colocate WORDS --help -->`."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any
from unittest.mock import patch

from colocate.cli.main import main

ASKED = re.compile(r"<!-- colocate ([\w ]*)--help -->")
FRAME = str.maketrans("", "", "╭╮╰╯─│")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' event: the page's text with the help of each command it asks for."""
    return ASKED.sub(lambda asked: f"```text\n{help_of(*asked[1].split())}\n```", markdown)


def help_of(*words: str) -> str:
    """The longest help that the command gives, 80 columns wide, without frames."""
    printed = _printed(*words, "--help")
    return _printed(*words, "--help-all") if "--help-all" in printed else printed


def _printed(*words: str) -> str:
    text, wide = io.StringIO(), patch.dict(os.environ, COLUMNS="84")
    with wide, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(words)
    lines = (re.sub("^[ -]{9,}$", "", line.translate(FRAME).rstrip()) for line in text.getvalue().splitlines())
    return re.sub(r"\n{2,}", "\n\n", "\n".join(lines)).strip()
