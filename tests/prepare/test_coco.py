"""COCO's JSON: masks as pycocotools draws them, several classes, and whatever is wrong is named with its annotation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from colocate.base.errors import UserError
from colocate.datasets import coco
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.data.pictures import picture
from tests.prepare.releases import save

WIDE, HIGH = 50, 40
Document = dict[str, Any]
SQUARE = [3, 4, 13, 4, 13, 14, 3, 14]
TRIANGLE = [20.3, 5.1, 40.7, 9.9, 25.5, 30.2]


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:HIGH, :WIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def packed(mask: np.ndarray) -> dict[str, Any]:
    encoded = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def runs(mask: np.ndarray) -> list[int]:
    """As COCO stores crowds: column by column, beginning with the pixels that are not set."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def annotation(id: int, image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


@pytest.fixture
def document(tmp_path: Path) -> Document:
    """Four images; polygons in one and a mask of either kind in others; the second category is without objects."""
    for number in range(4):
        save(picture(number, WIDE, HIGH), tmp_path / "src" / f"image {number}.png")
    images = [
        {"id": 10 + number, "file_name": f"image {number}.png", "width": WIDE, "height": HIGH} for number in range(4)
    ]
    categories = [{"id": 7, "name": "gland"}, {"id": 1, "name": "nothing"}, {"id": 3, "name": "nucleus"}]
    annotations = [
        annotation(100, 10, 7, [SQUARE]),
        annotation(101, 10, 3, [TRIANGLE, [1, 30, 9, 30, 9, 38]], iscrowd=0),
        annotation(102, 11, 7, packed(disc(20, 20, 9))),
        annotation(103, 12, 3, {"size": [HIGH, WIDE], "counts": runs(disc(30, 10, 7))}),
        annotation(104, 12, 3, {"size": [HIGH, WIDE], "counts": runs(disc(5, 5, 20))}, iscrowd=1),
    ]
    licences = [{"id": 1, "name": "CC BY 4.0", "url": "somewhere"}]
    return {"images": images, "annotations": annotations, "categories": categories, "licenses": licences}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "src" / "tissue.json"


@pytest.fixture
def made(file: Path, tmp_path: Path) -> Callable[..., Labelled]:
    def made(document: Document, **options: Any) -> Labelled:
        file.write_text(json.dumps(document))
        return write(tmp_path / "out", *coco.drafts(file, **options))

    return made


def test_numbers_may_be_words(made: Callable[..., Labelled], document: Document) -> None:
    """As programs write them that made the JSON from a table."""
    document["annotations"][0]["iscrowd"] = "0"
    document["annotations"][1]["iscrowd"] = ""
    document["annotations"][4]["iscrowd"] = "1"
    document["annotations"][0] |= {"image_id": "10", "category_id": "7"}
    document["categories"][2]["id"] = "3"
    document["images"][0] |= {"width": str(WIDE), "height": str(HIGH)}
    document["images"][1] |= {"width": float(WIDE), "height": float(HIGH)}
    data = made(document)
    assert [len(data.mask(number).unique()) - 1 for number in range(4)] == [2, 1, 1, 0]
    assert data.notes[1] == f"{coco.CROWDS}: 1 (tissue.json, annotation 104)."


def test_what_was_drawn_with_a_brush_of_cvat_is_no_crowd(made: Callable[..., Labelled], document: Document) -> None:
    """CVAT (Datumaro) writes iscrowd 1 for every mask; that it wrote it shows in `attributes`, which COCO has not."""
    document["annotations"][2] |= {"iscrowd": 1, "attributes": {"occluded": False}}
    document["annotations"][3] |= {"iscrowd": 1, "attributes": {}}
    data = made(document)
    assert [len(data.mask(number).unique()) - 1 for number in range(4)] == [2, 1, 1, 0]
    assert data.notes[1:] == (
        f"{coco.CROWDS}: 1 (tissue.json, annotation 104).",
        f"{coco.BRUSHED}: 2 (tissue.json, annotation 102; tissue.json, annotation 103).",
    )


def test_masks_are_those_of_pycocotools(made: Callable[..., Labelled], document: Document) -> None:
    data = made(document)
    assert (data.name, data.kind, data.licence) == ("tissue", "instances", "CC BY 4.0.")
    assert data.classes == ("gland", "nucleus")
    polygons_ = [
        pycoco.merge(pycoco.frPyObjects(document["annotations"][n]["segmentation"], HIGH, WIDE)) for n in (0, 1)
    ]
    square, triangles = (torch.from_numpy(pycoco.decode(encoded)).bool() for encoded in polygons_)
    mask = data.mask(0)
    assert torch.equal(mask == 1, square)
    assert torch.equal(mask == 2, triangles)
    assert torch.equal(data.mask(1), torch.from_numpy(disc(20, 20, 9)).int())
    assert torch.equal(data.mask(2), torch.from_numpy(disc(30, 10, 7)).int())
    assert not data.mask(3).any()
    assert data.object_classes(0, torch.tensor([1, 2])).tolist() == [1, 2]
    assert data.object_classes(2, torch.tensor([1])).tolist() == [2]
    assert data.notes == (
        "tissue names no cases: a patient may be on both sides.",
        f"{coco.CROWDS}: 1 (tissue.json, annotation 104).",
    )
    assert [item.path for item in data.items] == [f"images/image {number}.png" for number in range(4)]
    data.verify()


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_runs_are_those_of_pycocotools(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((height, width)) < 0.5, np.ones((rng.integers(1, 60), rng.integers(1, 60)))) > 0
    patch = coco._patch(packed(mask), *mask.shape, "test")
    found = np.zeros_like(mask)
    found[patch.top : patch.top + patch.mask.shape[0], patch.left : patch.left + patch.mask.shape[1]] = patch.mask
    assert (found == mask).all()
    assert (coco._patch({"size": list(mask.shape), "counts": runs(mask)}, *mask.shape, "test").mask == patch.mask).all()


def test_what_entries_of_images_say_beside(made: Callable[..., Labelled], document: Document) -> None:
    """Patient 0 is a patient."""
    document["images"][0] |= {"source": 0, "case": 5, "mpp": 0.5, "split": "train"}
    document["images"][1] |= {"case": 0, "split": "test"}
    document["images"][2] |= {"source": " ", "case": "P1 ", "mpp": "0.25"}
    document["images"][3] |= {"split": "train"}
    data = made(document, mpp=0.75)
    assert [item.source for item in data.items] == ["0", "0", "P1", ""]
    assert [item.mpp for item in data.items] == [0.5, 0.75, 0.25, 0.75]
    assert data.parts("given") == {"train": [0, 3], "test": [1]}


def test_images_elsewhere_and_in_folders(made: Callable[..., Labelled], document: Document, file: Path) -> None:
    """With the paths of Windows too, as Label Studio writes them there."""
    for number, image in enumerate(document["images"]):
        old = file.parent / image["file_name"]
        image["file_name"] = f"deep\\er\\{old.name}" if number else f"deep/er/{old.name}"
        (file.parents[1] / "images" / "deep" / "er").mkdir(parents=True, exist_ok=True)
        old.rename(file.parents[1] / "images" / "deep" / "er" / old.name)
    with pytest.raises(UserError, match=r"src/deep/er/image 0\.png, image 10 of .*, is missing: get it, or .* --imag"):
        made(document)
    names = [item.name for item in made(document, images="../images").items]
    assert names[:2] == ["deep_er_image 0", "deep_er_image 1"]


def test_a_category_without_an_object_may_be_called_as_another(
    made: Callable[..., Labelled], document: Document
) -> None:
    """Roboflow puts one of the project's name before the others, as what they are below."""
    document["categories"].insert(0, {"id": 0, "name": "nucleus", "supercategory": "none"})
    data = made(document)
    assert data.classes == ("gland", "nucleus")
    assert data.object_classes(0, torch.tensor([1, 2])).tolist() == [1, 2]


@pytest.mark.parametrize(
    "way", ["..\\secret.png", "../secret.png", "a/../../secret.png", "{}/secret.png", "images/../../secret.png"]
)
def test_no_picture_comes_from_outside(made: Callable[..., Labelled], document: Document, way: str, file: Path) -> None:
    save(picture(9, WIDE, HIGH), file.parents[1] / "secret.png")
    (file.parent / "images").mkdir()
    document["images"][0]["file_name"] = way.format(file.parents[1])
    with pytest.raises(UserError, match=r"image 10 has the file_name .*secret\.png, which leads out of its folder"):
        made(document)


def test_numbers_of_any_size_are_ids(made: Callable[..., Labelled], document: Document) -> None:
    for key, field in (("images", "image_id"), ("categories", "category_id")):
        for entry in document[key]:
            entry["id"] += 10**30
        for entry in document["annotations"]:
            entry[field] += 10**30
    assert made(document).object_classes(2, torch.tensor([1])).tolist() == [2]


BROKEN = {
    "none": (None, "encloses no pixel: mend it, or leave such objects out with --skip-broken"),
    "box": ([[1, 1, 5, 5]], "encloses no pixel"),
    "away": ([[100, 100, 120, 100, 120, 120]], r"lies outside of its image \(50 x 40 px\)"),
    "nothing": (packed(disc(0, 0, 0)), "encloses no pixel"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_objects_are_refused_or_left_out(made: Callable[..., Labelled], document: Document, kind: str) -> None:
    segmentation, error = BROKEN[kind]
    document["annotations"].append(annotation(999, 13, 1, segmentation))
    with pytest.raises(UserError, match=rf"tissue\.json, annotation 999 {error}"):
        made(document)
    data = made(document, skip_broken=True)
    assert not data.mask(3).any()
    assert data.classes == ("gland", "nucleus")
    assert any("annotation 999" in note for note in data.notes)


@pytest.mark.parametrize(
    ("segmentation", "error"),
    [
        ([[1, 1, 5]], r"is no outline of x, y, x, y, \.\.\."),
        ([SQUARE, "word"], r"is no outline of (x, y, x, y|points)"),
        ([[1, 1, "x", 1, 5, 5]], r"is no outline of points x, y \(.*'x'.*\)"),
        (SQUARE, r"is no outline of x, y, x, y, \.\.\."),
        *((value, r"is no outline of x, y, x, y, \.\.\.") for value in (True, 0, 0.5, "", "word")),
        ([[1, 1, 1e308, 1, 5, 5]], r"is no outline of points x, y \(a coordinate .*\): get"),
        ({"size": [HIGH + 1, WIDE], "counts": [2050]}, r"is a mask of size \[41, 50\], its image of \[40, 50\]"),
        ({"counts": [2000]}, "is a mask of size None"),
        ({"size": [HIGH, WIDE]}, r"has no runs of pixels \(counts\)"),
        ({"size": [HIGH, WIDE], "counts": [1000, -10, 1010]}, "has no runs of pixels"),
        ({"size": [HIGH, WIDE], "counts": [1000, 999]}, "has runs that do not cover its image once"),
        ({"size": [HIGH, WIDE], "counts": ""}, "has no runs of pixels"),
        ({"size": [HIGH, WIDE], "counts": "0"}, "has runs that do not cover its image once"),
        ({"size": [HIGH, WIDE], "counts": packed(disc(9, 9, 5))["counts"][:-2]}, "has (no )?runs"),
        ({"size": [HIGH, WIDE], "counts": "\u00e9 "}, "has no runs of pixels"),
        ({"size": [HIGH, WIDE], "counts": "o" * 9}, "has no runs of pixels"),
    ],
)
def test_what_is_no_object_is_named_always(
    made: Callable[..., Labelled], document: Document, segmentation: Any, error: str
) -> None:
    document["annotations"].append(annotation(999, 13, 7, segmentation))
    with pytest.raises(UserError, match=rf"tissue\.json, annotation 999 {error}"):
        made(document, skip_broken=True)


def test_sizes_that_differ_are_named(made: Callable[..., Labelled], document: Document) -> None:
    document["images"][2]["width"] = 51
    with pytest.raises(UserError, match=r"image 2\.png is 50 x 40 px, but .*tissue\.json says 51 x 40 px: get the"):
        made(document)
    for image in document["images"]:
        del image["width"], image["height"]
    assert len(made(document)) == 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d["annotations"][0].update(image_id=5), "annotation 100 has the image_id 5, which is not in the f"),
        (lambda d: d["annotations"][0].update(category_id=5), "annotation 100 has the category_id 5, which is not in"),
        (lambda d: d["annotations"][0].pop("image_id"), "has an entry without image_id, which COCO's JSON has"),
        (lambda d: d["annotations"][1].update(id=100), "has annotations 100 twice"),
        (lambda d: d["images"][1].update(id=10), "has images 10 twice"),
        (lambda d: d["images"][1].pop("file_name"), "has an entry without file_name"),
        (lambda d: d["images"][1].update(mpp="fine"), "image 11: mpp 'fine' is no number"),
        (lambda d: d["images"][1].update(mpp=10**400), "image 11: mpp 10*0 is no number"),
        (lambda d: d["images"][1].update(split="training"), "image 11 has the split 'training': write train"),
        (lambda d: d["images"][1].update(file_name=7), "is missing: get it"),
        (lambda d: d["images"][1].update(d["images"][0] | {"id": 11}), "has two images of the name image 0"),
        (lambda d: d["images"][1].update(split=0), "image 11 has the split '0': write train"),
        (lambda d: d["images"][1].update(file_name="a" * 300), "is missing: get it"),
        (lambda d: d["images"][1].update(file_name="a\0"), "is missing: get it"),
        (
            lambda d: d["categories"][2].update(name="gland", supercategory="organ"),
            "has two categories of the name gland: rename one, or give the objects of both",
        ),
        (lambda d: d["categories"][2].update(name="gland "), "has two categories of the name gland"),
        (lambda d: d.pop("categories"), "has no list categories as COCO's JSON has"),
        (lambda d: d.update(images=["image 0.png"]), "has no list images as COCO's JSON has"),
        (lambda d: d.update(annotations=[]), "has no outline in any of its 4 images"),
    ],
)
def test_what_does_not_fit_is_named(
    made: Callable[..., Labelled], document: Document, change: Callable[[Document], Any], error: str
) -> None:
    change(document)
    with pytest.raises(UserError, match=rf"tissue(\.json,?)? .*{error}"):
        made(document)


def test_what_is_no_json_is_named(file: Path, document: Document) -> None:
    for text, says in (
        ("[1, 2", r"is no JSON, or is cut short \(.+\): get it again"),
        ("[1, 2]", "has no list categor"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=rf"tissue\.json {says}"):
            coco.drafts(file)
    file.unlink()
    with pytest.raises(UserError, match=r"tissue\.json cannot be read \(No such file"):
        coco.drafts(file)


@pytest.mark.parametrize(
    ("part", "number", "key", "where"),
    [
        ("images", 1, "file_name", "file_name of the entry 11"),
        ("images", 1, "source", "source of the image 11"),
        ("images", 1, "case", "source of the image 11"),
        ("images", 1, "split", "image 11"),
        ("categories", 0, "name", "name of the entry 7"),
        ("licenses", 0, "name", "licenses"),
        ("annotations", 0, "id", r"id of the entry a\\ud800\.png"),
    ],
)
def test_half_a_character_is_named_with_its_entry(
    part: str, number: int, key: str, where: str, made: Callable[..., Labelled], document: Document, tmp_path: Path
) -> None:
    """JSON may hold `\\ud800` alone, which is no text: no file can be called so, and no table can hold it."""
    document[part][number][key] = "a\ud800.png"
    with pytest.raises(UserError, match=rf"tissue\.json, {where} has half a character \('a\\ud800"):
        made(document)
    assert not (tmp_path / "out").exists()
