"""GlaS (Warwick-QU), the MICCAI 2015 gland segmentation challenge: 165 H&E images of colon, 1,530 glands.

Sirinukunwattana et al., "Gland segmentation in colon histology images: the GlaS challenge contest", 2017.

Two ways to split. "official" is the challenge's (85 train, 60 testA, 20 testB) and has patients on both sides.
"patients" has each patient on one: patients 4, 7, 9, 11, 12, 13 and 15 are test (77 images, 39 malignant), the others
train (88 images). Of all choices of patients those that keep most images on their official side keep 118 of 165, and
this one of them comes nearest to the official sizes.
"""

from __future__ import annotations

import re
from pathlib import Path

from colocate.base.errors import UserError
from colocate.base.tables import as_text, read_table
from colocate.datasets.files import by_stem, entries, pairs, read_objects
from colocate.datasets.writer import Converted, Draft, Facts

MPP = 0.62  # the challenge's page: 0.62005 µm/px
TEST_PATIENTS = frozenset({"4", "7", "9", "11", "12", "13", "15"})
NAME = re.compile(r"(train|testA|testB)_[0-9]+(_anno)?")
FACTS = Facts(
    name="glas",
    kind="instances",
    classes=("gland",),
    numbered=True,
    licence="For research only; no commercial use (challenge page). Cite Sirinukunwattana et al. 2017.",
    notes=(
        "The official split of GlaS has patients on both sides, so that its scores may flatter; "
        "the split `patients` has none.",
    ),
    expected={"train": 85, "testA": 60, "testB": 20, "objects": 1530},
)


def drafts(src: Path) -> Converted:
    """Read GlaS as released: train_1.bmp, train_1_anno.bmp, ..., Grade.csv, in `src` or a folder in it.

    Raises UserError: Grade.csv is missing or not as released, an image is not listed in it, or one has no annotation.
    """
    grades = _grades(src)
    patients = _patients(grades)
    files = {name: path for name, path in by_stem(grades.parent).items() if NAME.fullmatch(name)}
    masks = {name.removesuffix("_anno"): path for name, path in files.items() if name.endswith("_anno")}
    images = {name: path for name, path in files.items() if not name.endswith("_anno")}
    found = sorted(pairs(images, masks, grades.parent), key=lambda pair: not pair[0].startswith("train"))
    if unlisted := [name for name in images if name not in patients]:
        raise UserError(f"{grades} does not list {unlisted[0]}, so its patient is unknown: get the file as released")
    return FACTS, (
        Draft(name, image, read_objects(mask), f"glas:{patients[name]}", MPP, _splits(name, patients[name]))
        for name, image, mask in found
    )


def _splits(name: str, patient: str) -> dict[str, str]:
    return {"official": name.partition("_")[0], "patients": "test" if patient in TEST_PATIENTS else "train"}


def _grades(src: Path) -> Path:
    for folder in (src, *(entry for entry in entries(src) if entry.is_dir())):
        for path in entries(folder):
            if path.name.lower() == "grade.csv":
                return path
    raise UserError(f"{src} has no Grade.csv, which says whose each image is: give the folder of the GlaS release")


def _patients(grades: Path) -> dict[str, str]:
    """Read the patient of each image."""
    rows = as_text(read_table(grades))
    names = [name for name in rows[0] if name.lower() in ("name", "patient id")] if rows else []
    if len(names) != 2:
        raise UserError(f"{grades} does not begin with name, patient ID: get the file as released")
    patients = {}
    for line, row in enumerate(rows, start=2):
        name, patient = (row[column] for column in names)
        if name and patient.isdigit():
            patients[name] = patient
        elif any(row.values()):
            raise UserError(
                f"{grades}, line {line}: no image and patient in {','.join(row.values())!r}: get the file again"
            )
    return patients
