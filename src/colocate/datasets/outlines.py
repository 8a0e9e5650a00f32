"""Draw the outlined objects of an image: each pixel gets the number of its object, and what is broken is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import shapely
import torch
from jaxtyping import Int32
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.shapes import Patch, rasterise, region
from colocate.data.decode import header
from colocate.datasets.own import Own, own_drafts
from colocate.datasets.writer import Converted, Facts

MENDED = "Outlines that cross or touch themselves, mended"
EMPTY = "Objects without area, left out"
OUTSIDE = "Objects outside of their image, left out"
HIDDEN = "Objects wholly under smaller ones, left out"


@final
class Remarks:
    """What was done to the objects of a data set, and to which."""

    def __init__(self) -> None:
        self.objects: dict[str, list[str]] = {}
        self.shared = 0
        """Pixels that more than one object claims."""

    def add(self, what: str, where: str) -> None:
        self.objects.setdefault(what, []).append(where)

    def notes(self) -> tuple[str, ...]:
        """A sentence for each thing that was done.

        >>> remarks = Remarks()
        >>> remarks.add(MENDED, "a.xml, region 7")
        >>> remarks.notes()
        ('Outlines that cross or touch themselves, mended: 1 (a.xml, region 7).',)
        """
        notes = [
            f"{what}: {len(names):,} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})."
            for what, names in sorted(self.objects.items())
        ]
        if self.shared:
            notes.append(f"Objects overlap: {self.shared:,} pixels that several claim went to the smallest.")
        return tuple(notes)


class _Drawn(NamedTuple):
    name: str
    class_: str
    patch: Patch


@final
class Canvas:
    """The objects of one image of `height` x `width` pixels, drawn one by one."""

    def __init__(self, height: int, width: int, file: Path, remarks: Remarks, *, skip: bool) -> None:
        """file: where the objects are outlined, for messages. skip: drop objects without a pixel with a remark."""
        self.height, self.width = height, width
        self.file = file
        self.remarks = remarks
        self.skip = skip
        self.drawn: list[_Drawn] = []

    def outline(self, name: str, polygons: Any, class_: str = "") -> None:
        """Draw an object given by polygons: each a list of rings (points x, y), the first outside, the others holes.

        name: what it is called in the file.
        Raises UserError if a coordinate is no number, or (unless `skip`) it has no area or lies outside the image.
        """
        self.shape(name, *region(polygons, f"{self.file}, {name}"), class_)

    def shape(self, name: str, shape: BaseGeometry, mended: bool, class_: str = "") -> None:
        """Draw an object given by its outline, which may have been mended. Raises UserError as `outline` does."""
        if mended and shape.area:
            self.remark(MENDED, name)
        if shape.area and not shape.intersects(shapely.box(0, 0, self.width, self.height)):
            self.leave_out(OUTSIDE, name, f"lies outside of its image ({self.width} x {self.height} px)")
        else:
            self.patch(name, rasterise(shape, self.height, self.width), class_)

    def patch(self, name: str, patch: Patch, class_: str = "") -> None:
        """Draw an object given by its pixels. Raises UserError (unless `skip`) if there are none."""
        if patch.mask.any():
            self.drawn.append(_Drawn(name, class_, patch))
        else:
            self.leave_out(EMPTY, name, "encloses no pixel")

    def remark(self, what: str, name: str) -> None:
        """Note what was done to an object."""
        self.remarks.add(what, f"{self.file.name}, {name}")

    def leave_out(self, what: str, name: str, how: str) -> None:
        """Note that an object is left out. Raises UserError unless `skip`."""
        if not self.skip:
            raise UserError(f"{self.file}, {name} {how}: mend it, or leave such objects out with --skip-broken")
        self.remark(what, name)

    def finish(self) -> tuple[Int32[Tensor, "h w"], dict[int, str]]:
        """The number of the object at each pixel (0 for none, the smallest of several), and the class of each."""
        ids = np.zeros((self.height, self.width), np.int32)
        claims = np.zeros((self.height, self.width), np.int32)
        numbered = list(enumerate(self.drawn, start=1))
        for number, drawn in sorted(numbered, key=lambda one: -int(one[1].patch.mask.sum())):
            claims[drawn.patch.place] += drawn.patch.mask
            ids[drawn.patch.place][drawn.patch.mask] = number
        self.remarks.shared += int((claims > 1).sum())
        seen = set(np.unique(ids).tolist())
        for number, drawn in numbered:
            if number not in seen:
                self.remark(HIDDEN, drawn.name)
        return torch.from_numpy(ids), {number: drawn.class_ for number, drawn in numbered if number in seen}


def outlined_drafts(
    facts: Facts,
    images: Mapping[str, Own],
    draw: Callable[[Own, Canvas], None],
    remarks: Remarks,
    *,
    where: Path,
    skip: bool,
    test_share: float | None = None,
    scheme: str = "given",
    order: Sequence[str] = (),
) -> Converted:
    """Prepare images with outlined objects, which `draw` draws, each with the name of its class; splits: `own_drafts`.

    All objects are drawn once before the first image is written, so that a broken one is named at once. Classes without
    an object are left out; the others are numbered in this order, or by name.

    Raises UserError if there is no object, one is broken, an image is none, or the images cannot be split.
    """

    def drawn(own: Own, remarks: Remarks) -> tuple[Int32[Tensor, "h w"], dict[int, str]]:
        width, height = header(own.image.read_bytes(), str(own.image)).size
        canvas = Canvas(height, width, own.labels, remarks, skip=skip)
        draw(own, canvas)
        return canvas.finish()

    used = {name for own in images.values() for name in drawn(own, remarks)[1].values()}
    if not used:
        raise UserError(f"{facts.name} has no outline in any of its {len(images)} images: export the objects again")
    classes = [name for name in order if name in used] or sorted(used)
    numbers = {name: number for number, name in enumerate(classes, start=1)}

    def mask(own: Own) -> tuple[Int32[Tensor, "h w"], dict[int, int]]:
        ids, names = drawn(own, Remarks())
        return ids, {id: numbers[name] for id, name in names.items()}

    facts = replace(facts, classes=tuple(classes), notes=remarks.notes())
    return own_drafts(facts, images, mask, test_share, where, scheme)
