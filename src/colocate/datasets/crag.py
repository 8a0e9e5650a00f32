"""CRAG: 213 H&E tiles of colorectal adenocarcinoma, mostly 1512 x 1516 px at 20x, with every gland outlined.

Graham et al., "MILD-Net: minimal information loss dilated network for gland instance segmentation in colon histology
images", Medical Image Analysis 2019.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from colocate.datasets.files import by_stem, entries, folder_in, pairs, read_objects
from colocate.datasets.writer import Converted, Draft, Facts

MPP = 0.5  # 20x, as stated
FACTS = Facts(
    name="crag",
    kind="instances",
    classes=("gland",),
    numbered=True,
    licence="Not stated with the files; cite Graham et al. 2019 (MILD-Net).",
    notes=("CRAG names neither patient nor slide of a tile: whether its split shares patients cannot be checked.",),
    expected={"train": 173, "test": 40},
)


def drafts(src: Path) -> Converted:
    """Read CRAG as released: train/Images, train/Annotation and the same in valid, in `src` or a folder in it.

    `valid` (in some copies `test`) is the part test. Annotations without a tile (version 1 of the release has five)
    are left out and said.

    Raises UserError: a folder is missing, or a tile has no annotation.
    """
    homes = [src, *(entry for entry in entries(src) if entry.is_dir())]
    root = next((home for home in homes if any(entry.name.lower() == "train" for entry in entries(home))), src)
    found: list[tuple[str, str, Path, Path]] = []
    left_out = 0
    for part, names in (("train", ("train",)), ("test", ("valid", "test"))):
        folder = folder_in(root, *names)
        images = by_stem(folder_in(folder, "Images"))
        annotations = folder_in(folder, "Annotation", "Annotations")
        masks = by_stem(annotations)
        known = {name: path for name, path in masks.items() if name in images}
        left_out += len(masks) - len(known)
        found += [(part, *pair) for pair in pairs(images, known, annotations)]
    facts = FACTS
    if left_out:
        facts = replace(FACTS, notes=(*FACTS.notes, f"{left_out} annotations have no tile and were left out."))
    return facts, (
        Draft(name, image, read_objects(mask), mpp=MPP, splits={"official": part}) for part, name, image, mask in found
    )
