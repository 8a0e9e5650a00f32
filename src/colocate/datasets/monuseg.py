"""MoNuSeg, the MICCAI 2018 nucleus segmentation challenge: 51 H&E images of several organs, every nucleus outlined.

Kumar et al., "A dataset and a technique for generalized nuclear segmentation for computational pathology", IEEE TMI
2017, and "A multi-organ nucleus segmentation challenge", IEEE TMI 2020. Outlines are Aperio ImageScope's XML.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from colocate.base.errors import UserError
from colocate.base.files import parsed
from colocate.datasets.files import by_stem, entries, find_folder, folder_in, pairs, patient
from colocate.datasets.outlines import Canvas, Remarks, outlined_drafts
from colocate.datasets.own import Known, Own
from colocate.datasets.writer import Converted, Facts

MPP = 0.25  # 40x; the files do not say it more exactly
TRAIN = ("MoNuSeg 2018 Training Data", "MoNuSeg Training Data", "MoNuSegTrainingData")
TEST = ("MoNuSegTestData", "MoNuSeg 2018 Test Data", "MoNuSegTestingData")
NEGATIVE = "Regions marked as negative, left out"
FACTS = Facts(
    name="monuseg",
    kind="instances",
    classes=("nucleus",),
    licence="CC BY-NC-SA 4.0 (challenge page). Cite Kumar et al. 2017 and 2020.",
    expected={"train": 37, "test": 14},
)


def drafts(src: Path, *, partial: bool = False) -> Converted:
    """Read MoNuSeg as released: "MoNuSeg 2018 Training Data" and MoNuSegTestData, both in `src`, or with
    `partial` one of them, which `src` may be itself.

    The first holds "Tissue Images" and Annotations, the second all files in one folder. Regions without area, as clicks
    leave them, are left out, and outlines that cross themselves mended; both are said, as are overlaps.

    Raises UserError: a folder is missing (unless `partial`), an image has no outlines, or a file is not as released.
    """
    found: dict[str, Own] = {}
    for part, names in (("train", TRAIN), ("test", TEST)):
        folder = find_folder(src, *names)
        if folder is None and not partial:
            raise UserError(f"{src} has no folder {' or '.join(names)}: get it, or take what is there with --partial")
        if folder is None:
            continue
        if (folder / folder.name).is_dir():  # archives unpack into a folder of their own name, sometimes into two
            folder /= folder.name
        images, outlines = _within(folder, "Tissue Images"), _within(folder, "Annotations")
        files = pairs(by_stem(images, (".tif", ".tiff", ".png")), by_stem(outlines, (".xml",)), outlines)
        for name, image, file in files:
            found[name] = Own(image, file, Known(patient(name), MPP, part))
    if not found:
        raise UserError(f"{src} has no folder {TRAIN[0]} or {TEST[0]}: give the folder of the files as released")
    return outlined_drafts(FACTS, found, _draw, Remarks(), where=src, skip=True, scheme="official")


def _draw(own: Own, canvas: Canvas) -> None:
    root = parsed(own.labels, "XML", ElementTree.fromstring)
    if root.tag != "Annotations":
        raise UserError(f"{own.labels} holds {root.tag}, not ImageScope's Annotations: get the file again")
    for number, region in enumerate(root.iterfind("Annotation/Regions/Region"), start=1):
        name = f"region {region.get('Id', number)}"
        if region.get("NegativeROA", "0") != "0":
            canvas.remark(NEGATIVE, name)
            continue
        points = [(vertex.get("X"), vertex.get("Y")) for vertex in region.iterfind("Vertices/Vertex")]
        canvas.outline(name, [[points]], "nucleus")
    if not canvas.drawn:
        raise UserError(f"{own.labels} outlines no nucleus: get the file again")


def _within(folder: Path, name: str) -> Path:
    """The folder of that name in `folder`, or itself where files lie side by side."""
    if any(entry.is_dir() for entry in entries(folder)):
        return folder_in(folder, name)
    return folder
