"""BCSS's layout, made small: regions become pieces that fit together again, and whatever is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from colocate.base.errors import UserError
from colocate.data.decode import decode
from colocate.datasets import bcss
from colocate.datasets.files import boxes
from colocate.datasets.labelled import Labelled
from colocate.datasets.prepare import prepare
from colocate.datasets.writer import write
from tests.data.pictures import picture
from tests.prepare.releases import save, turned

TRAIN = "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500"
TEST = "TCGA-OL-A5D6-DX1_xmin115108_ymin40554_MPP-0.2500"
WIDE, HIGH = 75, 50


def codes(seed: int) -> np.ndarray:
    """Classes 1 to 21, and 0 in the left third."""
    mask = np.random.default_rng(seed).integers(1, 22, (HIGH, WIDE), dtype=np.uint8)
    mask[:, : WIDE // 3] = 0
    return mask


@pytest.fixture
def release(tmp_path: Path) -> Path:
    src = tmp_path / "src"
    for seed, name in enumerate((TRAIN, TEST)):
        save(picture(seed, WIDE, HIGH), src / "images" / f"{name}.png")
        save(codes(seed), src / "masks" / f"{name}.png")
    return src


@pytest.fixture
def data(release: Path, tmp_path: Path) -> Labelled:
    return write(tmp_path / "out", *bcss.drafts(release, piece=32), partial=True)


def test_release(data: Labelled) -> None:
    assert (data.name, data.kind, data.ignored) == ("bcss", "semantics", 0)
    assert (len(data.classes), data.classes[1], data.classes[20]) == (22, "tumor", "dcis")
    assert {item.source for item in data.items} == {"TCGA-A1-A0SK", "TCGA-OL-A5D6"}
    assert {item.mpp for item in data.items} == {0.25}
    for part in ("train", "test"):
        sources = {data.items[number].source for number in getattr(data, part)("institutes")}
        assert sources == {"TCGA-A1-A0SK" if part == "train" else "TCGA-OL-A5D6"}
    assert data.notes == (
        "Regions were cut into pieces of at most 32 x 32 px; those without annotation were left out.",
        "Not the complete data set: 2 sources instead of 151.",
    )
    data.verify()


def test_pieces_fit_together_again(data: Labelled, release: Path) -> None:
    for seed, name in enumerate((TRAIN, TEST)):
        image, mask = torch.zeros(3, HIGH, WIDE, dtype=torch.uint8), torch.zeros(HIGH, WIDE, dtype=torch.int32)
        covered = torch.zeros(HIGH, WIDE, dtype=torch.int32)
        for number, item in enumerate(data.items):
            region, left, top = item.name.rsplit("_", 2)
            if region == name:
                assert max(item.height, item.width) <= 32
                here = np.s_[int(top) : int(top) + item.height, int(left) : int(left) + item.width]
                image[:, *here], mask[here] = data.image(number), data.mask(number)
                covered[here] += 1
        true = torch.from_numpy(codes(seed).astype(np.int32))
        assert covered.max() == 1
        assert torch.equal(mask, true)
        assert (covered[true > 0] == 1).all()  # what was left out holds nothing that counts
        whole = decode((release / "images" / f"{name}.png").read_bytes(), name)
        assert torch.equal(image, whole * covered.to(torch.uint8))


@pytest.mark.parametrize(
    ("height", "width", "piece"), [(50, 75, 32), (1024, 1024, 1024), (1, 1025, 1024), (97, 33, 48)]
)
def test_pieces_are_about_equal_and_cover_all(height: int, width: int, piece: int) -> None:
    covered = np.zeros((height, width), int)
    sizes = []
    for left, top, right, bottom in boxes(height, width, piece):
        covered[top:bottom, left:right] += 1
        sizes.append((bottom - top, right - left))
    assert (covered == 1).all()
    assert np.max(sizes) <= piece
    assert (np.ptp(sizes, axis=0) <= 1).all()


def test_colour_normalised_images_and_names_without_resolution(release: Path, tmp_path: Path) -> None:
    """The other two layouts: the download in one, and the first script's, whose names end in _."""
    (release / "images").rename(release / "rgbs_colorNormalized")
    for folder in ("rgbs_colorNormalized", "masks"):
        (release / folder / f"{TRAIN}.png").rename(release / folder / f"{TRAIN.partition('MPP')[0]}.png")
    facts, drafts = bcss.drafts(release, mpp=0.23)
    assert "The images are the colour-normalised ones." in facts.notes
    assert "1 names do not say their resolution, taken as 0.23 micrometres per pixel." in facts.notes
    assert {(draft.name, draft.mpp) for draft in drafts} == {
        ("TCGA-A1-A0SK-DX1_xmin45749_ymin25055_0_0", 0.23),
        (f"{TEST}_0_0", 0.25),
    }


def spoilt(src: Path, mask: np.ndarray, **options: object) -> None:
    save(mask, src / "masks" / f"{TRAIN}.png", **options)


NO_CODE = np.where(codes(0) == 0, 200, codes(0)).astype(np.uint8)
IMAGE, MASK = rf"images/{TRAIN}\.png", rf"masks/{TRAIN}\.png"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda src: spoilt(src, codes(0)[:-1]), rf"{IMAGE} is 75 x 50 px and its mask .*{TRAIN}\.png 75 x 49: one"),
        (lambda src: spoilt(src, codes(0) + 1), f"{MASK} holds the class code 22, but BCSS has class codes 0 to 21"),
        (lambda src: spoilt(src, NO_CODE), f"{MASK} holds the class code 200, but BCSS has class codes 0 to 21: get"),
        (lambda src: spoilt(src, codes(0), format="JPEG"), f"{MASK} is packed as JPEG, which may change numbers"),
        (
            lambda src: save(picture(0, WIDE, HIGH), src / "images" / f"{TRAIN}.png", exif=turned(6)),
            rf"{IMAGE} is to be turned by its EXIF entry \(orientation 6\)",
        ),
    ],
)
def test_what_is_wrong_is_named(release: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(release)
    with pytest.raises(UserError, match=says):
        list(bcss.drafts(release)[1])


@pytest.mark.parametrize(("folder", "keep"), [("images", 300), ("masks", 0)])
def test_damage_is_named_and_nothing_half_written(release: Path, tmp_path: Path, folder: str, keep: int) -> None:
    path = release / folder / f"{TEST}.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{folder}/{TEST}\.png is missing, cut short or damaged \(.+\): get it again"):
        prepare("bcss", release, tmp_path / "out", partial=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["src"]


def test_names_and_pieces_that_make_no_sense(release: Path) -> None:
    with pytest.raises(UserError, match="--piece 31 is too small"):
        bcss.drafts(release, piece=31)
    for folder in ("images", "masks"):
        (release / folder / f"{TEST}.png").rename(release / folder / "region2.png")
    with pytest.raises(UserError, match="region2 does not begin with a TCGA barcode"):
        list(bcss.drafts(release)[1])
