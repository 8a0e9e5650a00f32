"""MoNuSeg's layout, made small: outlines in ImageScope's XML become numbered nuclei, and whatever is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colocate.base.errors import UserError
from colocate.data.decode import decode
from colocate.datasets import monuseg
from colocate.datasets import outlines as polygons
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.data.pictures import packed, picture

TRAIN = ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-AY-A8YK-01A-01-TS1")
TEST = ("TCGA-2Z-A9J9-01A-01-TS1",)
Region = list[tuple[float, float]]


def square(left: float, top: float, side: float = 10) -> Region:
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]


def xml(*regions: Region, negative: bool = False) -> str:
    """As ImageScope writes it, with the attributes that nobody needs."""
    parts = [
        f'<Region Id="{number}" Zoom="1" Text="" NegativeROA="{int(negative)}"><Attributes/><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in region)
        + "</Vertices></Region>"
        for number, region in enumerate(regions, start=1)
    ]
    head = "<RegionAttributeHeaders><AttributeHeader Id='9999' Name='Region'/></RegionAttributeHeaders>"
    layer = f'<Annotation Id="1"><Attributes/><Regions>{head}{"".join(parts)}</Regions><Plots/></Annotation>'
    return f'<Annotations MicronsPerPixel="0.25">{layer}</Annotations>'


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two images to train on and one to test on, two nuclei each."""
    src = tmp_path / "src"
    train = src / "MoNuSeg 2018 Training Data"
    for folder in (train / "Tissue Images", train / "Annotations", src / "MoNuSegTestData"):
        folder.mkdir(parents=True)
    for number, name in enumerate((*TRAIN, *TEST)):
        images, outlines = (
            (train / "Tissue Images", train / "Annotations") if name in TRAIN else (src / "MoNuSegTestData",) * 2
        )
        (images / f"{name}.tif").write_bytes(packed(picture(number, 50, 40), "tif"))
        (outlines / f"{name}.xml").write_text(xml(square(3, 4), square(30, 20)))
    return src


@pytest.fixture
def outlines(release: Path) -> Path:
    return release / "MoNuSegTestData" / f"{TEST[0]}.xml"


@pytest.fixture
def made(release: Path, tmp_path: Path) -> Callable[[], Labelled]:
    return lambda: write(tmp_path / "out", *monuseg.drafts(release, partial=True), partial=True)


def test_release(made: Callable[[], Labelled], outlines: Path) -> None:
    data = made()
    assert (data.name, data.kind, data.classes) == ("monuseg", "instances", ("nucleus",))
    assert [item.name for item in data.items] == [*TRAIN, *TEST]
    assert [item.source for item in data.items] == ["TCGA-A7-A13E", "TCGA-AY-A8YK", "TCGA-2Z-A9J9"]
    assert {item.mpp for item in data.items} == {0.25}
    assert data.parts("official") == {"train": [0, 1], "test": [2]}
    assert data.shared_sources("official") == set()
    expected = torch.zeros(40, 50, dtype=torch.int32)
    expected[4:14, 3:13] = 1
    expected[20:30, 30:40] = 2
    for number in range(3):
        assert torch.equal(data.mask(number), expected)
        assert data.items[number].path.endswith(".png")  # TIFF, without loss
    assert torch.equal(data.image(2), decode(outlines.with_suffix(".tif").read_bytes(), "test"))
    assert data.notes == ("Not the complete data set: 2 train instead of 37, 1 test instead of 14.",)
    data.verify()


def test_other_layouts(release: Path, made: Callable[[], Labelled]) -> None:
    """The first release's folder names, and archives that unpack into two folders of one name."""
    test = release / "MoNuSegTestData"
    test.rename(release / "inner")
    test.mkdir()
    (release / "inner").rename(test / "MoNuSegTestData")
    train = release / "MoNuSeg 2018 Training Data"
    (train / "Tissue Images").rename(train / "Tissue images")
    train.rename(release / "MoNuSeg Training Data")
    assert len(made()) == 3


@pytest.mark.parametrize("part", ["MoNuSeg 2018 Training Data", "MoNuSegTestData"])
@pytest.mark.parametrize("itself", [False, True])
def test_a_folder_of_one_part(release: Path, tmp_path: Path, part: str, itself: bool) -> None:
    """As each is its own download: in a folder, or given itself."""
    src = tmp_path / "got" / part
    src.parent.mkdir()
    (release / part).rename(src)
    with pytest.raises(UserError, match=r"has no folder MoNuSeg.*: get it, or take what is there with --partial"):
        monuseg.drafts(src if itself else src.parent)
    with pytest.raises(UserError, match="has no folder MoNuSeg 2018 Training Data or MoNuSegTestData: give the folder"):
        monuseg.drafts(tmp_path, partial=True)
    data = write(tmp_path / "out", *monuseg.drafts(src if itself else src.parent, partial=True), partial=True)
    name = "test" if "Test" in part else "train"
    assert data.parts("official") == {name: list(range(len(data)))} and len(data) == (1 if name == "test" else 2)


def test_what_outlines_nothing_is_left_out_and_what_crosses_is_mended(
    made: Callable[[], Labelled], outlines: Path
) -> None:
    bow_tie = [(20, 20), (30, 30), (30, 20), (20, 30)]
    outlines.write_text(xml(square(3, 4), [], [(9, 9)], [(1, 1), (7, 7)], bow_tie, square(60, 60)))
    data = made()
    mask = data.mask(2)
    assert mask.unique().tolist() == [0, 1, 2]
    assert abs(int((mask == 2).sum()) - 50) <= 5
    name = outlines.name
    assert data.notes[:3] == (
        f"{polygons.OUTSIDE}: 1 ({name}, region 6).",
        f"{polygons.EMPTY}: 3 ({name}, region 2; {name}, region 3; {name}, region 4).",
        f"{polygons.MENDED}: 1 ({name}, region 5).",
    )


def test_negative_regions_are_no_nuclei(made: Callable[[], Labelled], outlines: Path) -> None:
    outlines.write_text(xml(square(3, 4)).replace("</Regions>", "").replace("<Plots/></Annotation></Annotations>", "")
                        + xml(square(30, 20), negative=True).partition("</RegionAttributeHeaders>")[2])  # fmt: skip
    data = made()
    assert data.mask(2).unique().tolist() == [0, 1]
    assert f"{monuseg.NEGATIVE}: 1 ({outlines.name}, region 1)." in data.notes


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (xml(square(1, 1))[:150], r"is no XML, or is cut short \(.*\): get it again"),
        ("<html>not found</html>", r"holds html, not ImageScope's Annotations: get the file again"),
        (xml(), r"outlines no nucleus: get the file again"),
        (
            xml(square(1, 1)).replace('X="11"', 'X="eleven"'),
            r"region 1 is no outline of points x, y \(.*eleven.*\): get",
        ),
    ],
)
def test_broken_outlines_are_named_before_anything_is_written(
    release: Path, outlines: Path, text: str, error: str
) -> None:
    outlines.write_text(text)
    with pytest.raises(UserError, match=f"{outlines}.*{error}"):
        monuseg.drafts(release, partial=True)


def test_renamed_and_damaged_images_are_named(release: Path, outlines: Path) -> None:
    image = outlines.with_suffix(".tif")
    image.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{image.name} is empty"):
        monuseg.drafts(release, partial=True)
    outlines.rename(outlines.with_name("image1.xml"))
    image.write_bytes(packed(picture(1, 50, 40), "tif"))
    image.rename(image.with_name("image1.tif"))
    with pytest.raises(UserError, match=r"image1 does not begin with a TCGA barcode, .*: undo its renaming"):
        monuseg.drafts(release, partial=True)
