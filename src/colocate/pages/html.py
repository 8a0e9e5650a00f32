"""Pages of one file: templates filled in with all names escaped, pictures inside, charts as SVG."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from colocate import __version__
from colocate.base.errors import UserError
from colocate.base.files import write_atomically


def embedded(picture: bytes) -> str:
    """A PNG or WebP as the address of an image that needs no other file."""
    kind = "png" if picture.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def strong(text: str) -> Markup:
    """A text whose **words** are bold, as in Markdown; all else is escaped.

    >>> print(strong("**54.1** [a<b]"))
    <strong>54.1</strong> [a&lt;b]
    """
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"strong": strong}
TEMPLATES.globals["version"] = __version__


def write_page(out: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it. Raises UserError where the file cannot be written."""
    write_atomically(out, TEMPLATES.get_template(template).render(values))


def check_ending(out: Path) -> Path:
    """The path of a page. Raises UserError if it is named as a picture, which pages once were."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: the page is HTML; name it .html, and give --png FILE for a picture")
    return out
