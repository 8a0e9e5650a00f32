"""Pictures light enough to be looked at in hundreds."""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image

MOST_BYTES = 300_000


def light_png(versions: Iterable[Image.Image]) -> bytes:
    """The first version of a picture whose PNG is below 300 kB, the last one if none is; those after it are not made.

    >>> noise = Image.effect_noise((900, 900), 99)
    >>> light = light_png(noise.resize((side, side)) for side in (900, 700, 400, 1))
    >>> Image.open(io.BytesIO(light)).size
    (400, 400)
    """
    packed = b""
    for version in versions:
        file = io.BytesIO()
        version.save(file, "PNG", optimize=True)
        packed = file.getvalue()
        if len(packed) < MOST_BYTES:
            break
    return packed
