"""Outlines that people drew become pixels: crossings mended, overlaps settled, and whatever was done counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import shapely
import torch
from jaxtyping import Float64, Int32
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from colocate.errors import UserError
from colocate.raster import Patch, rasterise

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


@final
class Canvas:
    """The objects of one image of `height` x `width` pixels, drawn one by one."""

    def __init__(self, height: int, width: int, file: Path, remarks: Remarks, *, skip: bool) -> None:
        """`file` says what the objects are; `skip`: those without a pixel are left out and remarked, not refused."""
        self.height, self.width = height, width
        self.file = file
        self.remarks = remarks
        self.skip = skip
        self.drawn: list[tuple[str, int, Patch]] = []

    def outline(self, name: str, polygons: Any, label: int = 1) -> None:
        """Draw an object given by polygons: each a list of rings (points x, y), the first outside, the others holes.

        name: what it is called in the file.

        Raises:
            UserError: a coordinate is no number, or (unless `skip`) the object has no area or lies outside the image.
        """
        shape, mended = region(polygons, f"{self.file}, {name}")
        if mended and shape.area:
            self.remark(MENDED, name)
        if shape.area and not shape.intersects(shapely.box(0, 0, self.width, self.height)):
            self._leave_out(OUTSIDE, name, f"lies outside of its image ({self.width} x {self.height} px)")
        else:
            self.patch(name, rasterise(shape, self.height, self.width), label)

    def patch(self, name: str, patch: Patch, label: int = 1) -> None:
        """Draw an object given by its pixels. Raises UserError (unless `skip`) if there are none."""
        if patch.mask.any():
            self.drawn.append((name, label, patch))
        else:
            self._leave_out(EMPTY, name, "encloses no pixel")

    def remark(self, what: str, name: str) -> None:
        """Note what was done to an object."""
        self.remarks.add(what, f"{self.file.name}, {name}")

    def finish(self) -> tuple[Int32[Tensor, "h w"], dict[int, int]]:
        """The number of the object at each pixel (0 for none, the smallest of several), and the label of each."""
        ids = np.zeros((self.height, self.width), np.int32)
        claims = np.zeros((self.height, self.width), np.int32)
        for number in sorted(range(len(self.drawn)), key=lambda number: -int(self.drawn[number][2].mask.sum())):
            top, left, mask = self.drawn[number][2]
            here = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
            claims[here] += mask
            ids[here][mask] = number + 1
        self.remarks.shared += int((claims > 1).sum())
        seen = set(np.unique(ids).tolist())
        for number, (name, _, _) in enumerate(self.drawn, start=1):
            if number not in seen:
                self.remark(HIDDEN, name)
        return torch.from_numpy(ids), {id: self.drawn[id - 1][1] for id in sorted(seen - {0})}

    def _leave_out(self, what: str, name: str, how: str) -> None:
        if not self.skip:
            raise UserError(f"{self.file}, {name} {how}: mend it, or leave such objects out with --skip-broken")
        self.remark(what, name)


def region(polygons: Any, where: str) -> tuple[BaseGeometry, bool]:
    """What polygons enclose together, and whether one had to be mended; empty if they enclose nothing.

    Where an outline crosses itself, all that it goes round counts.

    Raises:
        UserError: a coordinate is no number.
    """
    parts, mended = [], False
    try:
        for rings in polygons:
            if len(rings) == 0:
                continue
            shell, *holes = [_points(ring) for ring in rings]
            if all(len(ring) >= 3 for ring in (shell, *holes)) and (part := shapely.Polygon(shell, holes)).is_valid:
                parts.append(part)
            else:
                mended = True
                parts.append(_filled(shell).difference(shapely.union_all([_filled(hole) for hole in holes])))
    except (TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} is no outline of points x, y ({reason}): get the file again, or mend it") from error
    return parts[0] if len(parts) == 1 else shapely.union_all(parts), mended


def _points(ring: Any) -> Float64[np.ndarray, "n 2"]:
    points = np.array([(float(point[0]), float(point[1])) for point in ring]).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is infinite or no number")
    return points


def _filled(ring: Float64[np.ndarray, "n 2"]) -> BaseGeometry:
    if len(ring) < 3:
        return shapely.Polygon()
    return shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
