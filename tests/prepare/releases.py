"""Small data sets in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from colocate.slides.pictures import ORIENTATION
from tests.data.pictures import picture

GLAS_PARTS = {"train": 85, "testA": 60, "testB": 20}
HEADER = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"


def row_of_objects(count: int, width: int, height: int) -> np.ndarray:
    """Ids 1, 2, ... on the pixels of the upper rows, one after the other."""
    mask = np.zeros((height, width), np.uint8)
    mask.ravel()[:count] = np.arange(1, count + 1)
    return mask


def save(array: np.ndarray | Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def turned(orientation: int) -> Image.Exif:
    """What a camera says of a picture that is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def write_glas(folder: Path, parts: dict[str, int] | None = None, ending: str = "bmp") -> Path:
    """As many images as released, but tiny; 45 of ten glands and the others of nine: 1,530 with all parts."""
    lines, written = [HEADER], 0
    for part, count in (parts or GLAS_PARTS).items():
        for number in range(1, count + 1):
            name, patient = f"{part}_{number}", 1 + written % 16
            lossless = {"lossless": True} if ending == "webp" else {}
            save(picture(written, 12, 9), folder / f"{name}.{ending}", **lossless)
            save(row_of_objects(9 + (written < 45), 12, 9), folder / f"{name}_anno.bmp")
            lines.append(f"{name},{patient}, benign, healthy")
            written += 1
    (folder / "Grade.csv").write_bytes("\r".join(lines).encode() + b"\r")
    return folder


def write_crag(folder: Path, valid: str = "valid", annotation: str = "Annotation") -> Path:
    for part, name, count in (("train", "train", 3), (valid, "test", 2)):
        for number in range(1, count + 1):
            save(picture(number, 10, 8), folder / part / "Images" / f"{name}_{number}.png")
            save(row_of_objects(number, 10, 8), folder / part / annotation / f"{name}_{number}.png")
            save(picture(number, 10, 8), folder / part / "Overlay" / f"{name}_{number}.png")
    return folder


def write_ebhi(folder: Path, separator: str = " ") -> Path:
    """Two tiles of two cases in each of six folders, one more without a mask."""
    for place, tissue in enumerate(
        ("Adenocarcinoma", "High-grade IN", "Low-grade IN", "Normal", "Polyp", "Serrated adenoma")
    ):
        home = folder / tissue.replace(" ", separator)
        for case in (2001837 + place, 2012400):
            save(picture(place, 8, 8), home / "image" / f"GT{case}-1-400-001.png")
            mask = Image.fromarray(row_of_objects(place + 1, 8, 8) > 0)
            assert mask.mode == "1"
            save(mask, home / "label" / f"GT{case}-1-400-001.png")
    save(picture(9, 8, 8), folder / "Low-grade IN".replace(" ", separator) / "image" / "GT2012149-2-400-001.png")
    return folder


def write_nct(folder: Path, tissues: tuple[str, ...], each: int = 2) -> Path:
    for tissue in tissues:
        for number in range(each):
            save(picture(number, 8, 8), folder / tissue / f"{tissue}-{number}.tif")
    return folder


def write_folder(folder: Path, count: int = 5) -> Path:
    for number in range(count):
        save(picture(number, 10, 8), folder / "images" / f"t{number}.jpg")
        save(row_of_objects(3, 10, 8), folder / "masks" / f"t{number}.png")
    return folder
