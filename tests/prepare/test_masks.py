"""Masks as people have them: what is not numbers for sure is refused, and what was understood is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import maximum_filter

from colocate.base.errors import UserError
from colocate.datasets import crag, folder
from colocate.datasets.files import check_drawn, read_mask, read_objects
from colocate.datasets.labelled import Labelled
from colocate.datasets.prepare import prepare
from colocate.datasets.writer import write
from tests.data.pictures import picture, png
from tests.prepare.releases import save, turned

SIDE = 64
CORNERS = [(4, 4), (4, 40), (40, 4), (40, 40)]


def squares(*numbers: int, side: int = 16) -> np.ndarray:
    """A square of each number, none touching another."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for number, (y, x) in zip(numbers, CORNERS, strict=False):
        mask[y : y + side, x : x + side] = number
    return mask


def folder_of(src: Path, *masks: np.ndarray) -> Path:
    for number, mask in enumerate(masks):
        save(picture(number, SIDE, SIDE), src / "images" / f"i{number}.png")
        save(mask, src / "masks" / f"i{number}.png")
    return src


def made(src: Path, **options: object) -> Labelled:
    return write(src.parent / "out", *folder.drafts(src, **options))  # type: ignore[arg-type]


def tiff(mask: np.ndarray, to: Path, **options: object) -> None:
    tifffile.imwrite(to.with_suffix(".tif"), mask, **options)  # type: ignore[arg-type]


REFUSED: dict[str, Callable[[np.ndarray, Path], object]] = {
    "packed as JPEG, which may change": lambda mask, to: save(mask, to.with_suffix(".jpg")),
    "as JPEG, which may change": lambda mask, to: tiff(mask, to, compression="jpeg"),
    "as WEBP, which may change": lambda mask, to: tiff(np.dstack([mask] * 3), to, compression="webp"),
    "packed as WEBP, which may change": lambda mask, to: save(np.dstack([mask] * 3), to.with_suffix(".webp")),
    "compressed TIFF of signed numbers": lambda mask, to: tiff(
        mask.astype(">i2"), to, compression="zlib", byteorder=">"
    ),
    "transparent in places": lambda mask, to: save(np.dstack([mask + 1, mask]), to),
    "is transparent": lambda mask, to: save(np.dstack([mask, mask, mask, mask]), to),
    "in which white is 0": lambda mask, to: save(mask, to.with_suffix(".tif"), tiffinfo={262: 0}),
    "has 2 pages": lambda mask, to: save(
        mask, to.with_suffix(".tif"), save_all=True, append_images=[Image.fromarray(mask)]
    ),
    "in colours": lambda mask, to: save(np.dstack([mask, mask // 2, mask]), to),
    r"turned by its EXIF entry \(orientation 6\)": lambda mask, to: save(mask, to, exif=turned(6)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_values_that_may_mean_something_else_are_refused(reason: str, tmp_path: Path) -> None:
    REFUSED[reason](squares(1, 2, 3, 4), tmp_path / "m.png")
    with pytest.raises(UserError, match=rf"m\.\w+ .*{reason}.*: save"):
        read_mask(next(tmp_path.iterdir()))


def test_a_mask_that_pillow_does_not_take_is_not_called_damaged(tmp_path: Path) -> None:
    Image.new("1", (14_000, 14_000)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png has more than 179 million pixels: cut the image and its mask"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("how", ["png", "contig", "separate", "contig zlib", "separate zlib"])
def test_sixteen_bits_in_channels_are_not_halved(how: str, channels: int, tmp_path: Path) -> None:
    """Pillow reads the upper eight alone, so that the first 255 objects vanish."""
    mask = squares(1, 2, 3, 4).astype(np.uint16) * 129
    deep = np.dstack([*[mask] * (channels - 1 + channels % 2), *[np.full_like(mask, 65535)] * (1 - channels % 2)])
    path = tmp_path / "m.tif"
    if how == "png":
        path = path.with_suffix(".png")
        rows = [row.tobytes() for row in deep.astype(">u2")]
        path.write_bytes(png(rows, (SIDE, SIDE), 16, {2: 4, 3: 2, 4: 6}[channels]))
    else:
        planes, *packing = how.split()
        tifffile.imwrite(
            path,
            deep if planes == "contig" else deep.transpose(2, 0, 1),
            photometric="rgb" if channels > 2 else "minisblack",
            planarconfig=planes,
            extrasamples=() if channels == 3 else ("unassalpha",),
            compression=packing[0] if packing else None,
        )
    says = r"has 16 bits in each channel, of which 8 .*: save|damaged \(cannot identify"  # grey and alpha in TIFF
    with pytest.raises(UserError, match=says if channels == 2 else says.split("|")[0]):
        read_mask(path)


@pytest.mark.parametrize("alpha", [False, True])
def test_webp_without_loss_is_read(alpha: bool, tmp_path: Path) -> None:
    """With a profile its pixels lie behind other chunks."""
    mask = squares(1, 2, 3, 4)
    channels = [mask] * 3 + [np.full_like(mask, 255)] * alpha
    for options in ({}, {"exif": Image.Exif().tobytes(), "icc_profile": b"VP8 is no profile"}):
        path = save(np.dstack(channels), tmp_path / "m.webp", lossless=True, **options)
        assert (read_mask(path).numpy() == mask).all()


def test_smaller_pages_are_the_same_picture(tmp_path: Path) -> None:
    mask = squares(1, 2, 3)
    small = Image.fromarray(mask).resize((9, 9), Image.Resampling.NEAREST)
    path = save(mask, tmp_path / "m.tif", save_all=True, append_images=[small])
    assert (read_mask(path).numpy() == mask).all()


@pytest.mark.parametrize("numbers", [(255,) * 4, (21, 22, 23, 24), (9, 200)])
@pytest.mark.parametrize("how", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_soft_edges_are_no_objects(numbers: tuple[int, ...], how: Image.Resampling, tmp_path: Path) -> None:
    mask = Image.fromarray(squares(*numbers))
    soft = save(mask.resize((100, 90), how), tmp_path / "soft.png")
    with pytest.raises(UserError, match=r"soft\.png has soft edges, .* \(nearest neighbour\)"):
        read_objects(soft)
    if max(numbers) < 255:
        hard = mask.resize((100, 90), Image.Resampling.NEAREST)
        assert (read_objects(save(hard, tmp_path / "hard.png")).numpy() == np.array(hard)).all()


@pytest.mark.parametrize("side", [4, 6, 9, 20])
@pytest.mark.parametrize("how", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_soft_edges_of_one_small_nucleus(side: int, how: Image.Resampling, tmp_path: Path) -> None:
    large = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(large).ellipse((81, 82, 81 + 4 * side, 82 + 4 * side), fill=200)
    with pytest.raises(UserError, match="has soft edges"):
        read_objects(save(large.resize((SIDE, SIDE), how), tmp_path / "soft.png"))


@pytest.mark.parametrize("seed", range(8))
def test_cells_without_a_gap_are_not_soft(seed: int, tmp_path: Path) -> None:
    """Each touches all its neighbours, with a few pixels of background where three meet, or anywhere."""
    rng = np.random.default_rng(seed)
    points, grid = rng.random((60, 2)) * SIDE, np.moveaxis(np.mgrid[:SIDE, :SIDE], 0, -1)
    away = np.linalg.norm(grid[:, :, None] - points, axis=-1)
    nearest = np.sort(away, axis=-1)
    gap = nearest[:, :, 2] - nearest[:, :, 0] < 0.6 if seed % 2 else rng.random((SIDE, SIDE)) < 0.02
    mask = np.where(gap, 0, away.argmin(-1) + 1).astype(np.uint8)
    assert (read_objects(save(mask, tmp_path / "m.png")).numpy() == mask).all()


def indexed(top: Path, palettes: list[str]) -> Path:
    """Images, and masks of three colours (white, red, blue) in palettes of these orders."""
    order, colours = "wrb", {"w": (255, 255, 255), "r": (200, 0, 0), "b": (0, 0, 200)}
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 5:], labels[:, 10:] = 1, 2
    for number, palette in enumerate(palettes):
        mask = Image.fromarray(np.array([palette.index(name) for name in order], np.uint8)[labels])
        mask.putpalette([value for name in palette for value in colours[name]])
        save(picture(number, 16, 16), top / "images" / f"{number}.png")
        save(mask, top / "masks" / f"{number}.png")
    return top


def test_a_number_has_one_colour_in_all_masks(tmp_path: Path) -> None:
    """Of masks that a program reduced to few colours one by one, the numbers mean nothing."""
    named = r"masks/1\.png gives the number {} another colour than .*masks/0\.png: save all masks as grey"
    for palettes, number in ((["wrb", "rwb"], 0), (["wrb", "wbr"], 1)):
        src = indexed(tmp_path / "-".join(palettes), palettes)
        with pytest.raises(UserError, match=named.format(number)):
            folder.drafts(src, semantics=True, classes=("other", "gland", "nucleus"))
    with pytest.raises(UserError, match=named.format(0)):
        folder.drafts(tmp_path / "wrb-rwb")
    folder.drafts(tmp_path / "wrb-wbr")  # objects may have any colours
    folder.drafts(indexed(tmp_path / "same", ["wrb", "wrb"]), semantics=True, classes=("a", "b", "c"))


@pytest.mark.parametrize("options", [{}, {"parts": "objects"}, {"semantics": True, "classes": ("other", "gland")}])
def test_greys_of_which_0_is_not_the_darkest_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    """A program that reduced black and white to a palette may have put white first."""
    for white, src in ((0, tmp_path / "white"), (1, tmp_path / "black")):
        mask = Image.fromarray(squares(1, 1) if white else 1 - squares(1, 1))
        mask.putpalette([0, 0, 0, 255, 255, 255] if white else [255, 255, 255, 0, 0, 0])
        for number in range(2):
            save(picture(number, SIDE, SIDE), src / "images" / f"{number}.png")
            save(mask, src / "masks" / f"{number}.png")
    with pytest.raises(UserError, match=r"masks/0\.png has a palette of greys of which 0 is not the darkest"):
        made(tmp_path / "white", **options)
    assert (read_mask(tmp_path / "black" / "masks" / "0.png").numpy() == squares(1, 1)).all()
    mask = Image.fromarray(squares(1, 2))
    mask.putpalette([0, 0, 0, 255, 255, 255, 128, 128, 128])
    assert (read_mask(save(mask, tmp_path / "grey.png")).numpy() == squares(1, 2)).all()


@pytest.mark.parametrize("options", [{}, {"parts": "objects"}])
@pytest.mark.parametrize("width", [1, 5])
def test_void_around_objects_is_no_object(width: int, options: dict[str, object], tmp_path: Path) -> None:
    """In Pascal VOC's masks 255 lies between an object and what is beside it."""
    mask = squares(1, 2, 3)
    void = np.where((mask == 0) & (maximum_filter(mask, 2 * width + 1) > 0), 255, mask).astype(np.uint8)
    src = folder_of(tmp_path / "mine", mask, void)
    with pytest.raises(UserError, match=r"i1\.png has 255 along the edges of its objects, which is void .*set it to 0"):
        made(src, **options)
    save(np.where(void == 255, 0, void).astype(np.uint8), src / "masks" / "i1.png")
    assert len(made(src, **options).mask(1).unique()) == 4


@pytest.mark.parametrize(
    ("numbers", "quality", "says"),
    [
        *(((255,) * 4, quality, "was packed with loss") for quality in (90, 95)),
        *(((60, 120, 180, 240), quality, "has soft edges") for quality in (60, 75, 90)),
        ((60, 120, 180, 240), 95, "was packed with loss"),
    ],
)
def test_what_was_a_jpeg_once_is_refused(numbers: tuple[int, ...], quality: int, says: str, tmp_path: Path) -> None:
    """Its noise stays when it is saved without loss."""
    drawing = Image.new("L", (SIDE, SIDE))
    for number, (y, x) in zip(numbers, CORNERS, strict=True):
        ImageDraw.Draw(drawing).ellipse((x, y, x + 17, y + 20), fill=number)
    with Image.open(save(drawing, tmp_path / "lossy.jpg", quality=quality)) as image:
        path = save(np.array(image), tmp_path / "m.png")
    with pytest.raises(UserError, match=rf"m\.png {says}"):
        read_objects(path)


def test_thin_objects_are_no_noise(tmp_path: Path) -> None:
    """Lines of one pixel across, whose pixels meet at corners alone."""
    mask = np.zeros((60, 60), np.uint8)
    for number in range(5):
        for place in range(40):
            mask[5 + place, 5 + place + 3 * number] = number + 1
    assert (read_objects(save(mask, tmp_path / "m.png")).numpy() == mask).all()


@pytest.mark.parametrize("beyond", [256, 255])
def test_more_objects_than_8_bits_count_have_lost_their_numbers(beyond: int, tmp_path: Path) -> None:
    """Programs count on from 0 there, or give all others the number 255."""
    ids = np.kron(np.arange(1, 301).reshape(15, 20), np.pad(np.ones((2, 2), int), 1))
    few = ids % 256 if beyond == 256 else ids.clip(0, 255)
    with pytest.raises(UserError, match=r"m\.png uses all 255 numbers of 8 bits, some for several objects: save it wi"):
        read_objects(save(few.astype(np.uint8), tmp_path / "m.png"))
    for right in (ids, np.where(ids > 255, 0, ids), few):  # 300 of them, 255, and 255 some of which have several parts
        assert (read_objects(save(right.astype(np.uint16), tmp_path / "r.png")).numpy() == right).all()
    check_drawn(torch.from_numpy(few.astype(np.int32)), tmp_path / "m.png")  # of --parts objects each part is one


def test_the_object_255_is_one(tmp_path: Path) -> None:
    mask = squares(1, 2, 255)
    mask[4:20, 20:28] = 255  # touches the first
    inside = np.full((40, 40), 255, np.uint16)
    inside[10:20, 10:20] = 7  # in a crop that shows nothing but two objects
    beyond = squares(1, 2, 3).astype(np.uint16)
    beyond[(beyond == 0) & (maximum_filter(beyond, 3) > 0)] = 255  # the number of an object, as 4000 is
    beyond[-1, -1] = 4000
    for right in (mask, inside, beyond):
        assert (read_objects(save(right, tmp_path / "m.png")).numpy() == right).all()


def test_objects_that_touch_are_not_soft(tmp_path: Path) -> None:
    """Every object touches eight others, with background between some of them."""
    mask = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((6, 6))).astype(np.uint8)
    mask[::12, ::5] = 0
    assert (read_objects(save(mask, tmp_path / "m.png")).numpy() == mask).all()


@pytest.mark.parametrize("number", [1, 2, 128])
def test_one_number_for_all_objects_is_refused(number: int, tmp_path: Path) -> None:
    src = folder_of(tmp_path / "mine", *[squares(*[number] * count) for count in (4, 4, 1, 0)])
    with pytest.raises(
        UserError, match=r"mine: no mask holds two numbers, and 2 hold .* \(.*i0\.png\): .*--parts objects"
    ):
        made(src)
    assert not (tmp_path / "out").exists()


def test_classes_given_as_objects_are_refused(tmp_path: Path) -> None:
    """Numbers of two kinds of glands, where those of glands were meant; here and there there is one of a kind."""
    src = folder_of(tmp_path / "mine", *[squares(*numbers) for numbers in ((1, 1, 2), (2, 2, 1, 1), (1, 2), (1, 1))])
    with pytest.raises(
        UserError, match=r"mine: 4 of 7 objects are in several parts \(as in .*i0\.png\), .* or add --sem"
    ):
        made(src)
    assert len(made(src, parts="objects").items) == 4


def test_the_same_of_crag(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        save(picture(1, SIDE, SIDE), tmp_path / part / "Images" / f"{part}.png")
        save(squares(1, 1, 1), tmp_path / part / "Annotation" / f"{part}.png")
    with pytest.raises(UserError, match="crag: no mask holds two numbers, and 2 hold"):
        write(tmp_path / "out", *crag.drafts(tmp_path), partial=True)


@pytest.mark.parametrize(
    ("numbers", "parts", "objects"),
    [
        *(([[number] * count for count in (4, 3, 1, 0)], "objects", [4, 3, 1, 0]) for number in (1, 255)),
        ([[1, 1, 1], [1]], "together", [1, 1]),
        ([[1, 1, 1], [1, 2]], None, [1, 2]),  # they are one where others are numbered
    ],
)
def test_parts_become_objects_on_request_or_stay_together(
    numbers: list[list[int]], parts: str | None, objects: list[int], tmp_path: Path
) -> None:
    data = made(folder_of(tmp_path / "mine", *[squares(*some) for some in numbers]), parts=parts)
    assert [len(data.mask(image).unique()) - 1 for image in range(len(data))] == objects
    assert ((data.mask(0).numpy() > 0) == (squares(*numbers[0]) > 0)).all()
    assert (folder.PARTS in data.notes) == (parts == "objects")


def test_parts_with_soft_edges_are_refused(tmp_path: Path) -> None:
    src = folder_of(tmp_path / "mine", squares(255), squares(255, 255))
    soft = Image.fromarray(squares(255, 255, 255)).resize((41, 41), Image.Resampling.BILINEAR)
    save(soft.resize((SIDE, SIDE), Image.Resampling.BILINEAR), src / "masks" / "i0.png")
    with pytest.raises(UserError, match=r"i0\.png has soft edges, whose values would count as objects"):
        made(src, parts="objects")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_an_image_to_be_turned_has_no_sure_labels(ending: str, orientation: int, tmp_path: Path) -> None:
    """Viewers turn it and most programs do not, so that nobody knows for which its mask or outlines were drawn."""
    src = folder_of(tmp_path / "mine", squares(1, 2), squares(1, 2))
    (src / "images" / "i1.png").unlink()
    save(picture(1, SIDE, SIDE), src / "images" / f"i1.{ending}", exif=turned(orientation))
    with pytest.raises(UserError, match=rf"i1\.{ending} is to be turned by its EXIF .*\(orientation {orientation}\)"):
        made(src)


def test_what_was_understood_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = np.zeros((SIDE, SIDE), np.uint8)
    many[::8, ::8] = np.arange(1, 65).reshape(8, 8)
    src = folder_of(tmp_path / "mine", many, many, many, np.ones_like(many), np.zeros_like(many))
    prepare("folder", src, tmp_path / "out")
    said = capsys.readouterr().out
    assert "objects per image: median 64 (0 to 64, 1 without any)" in said
    assert "look at i3 (1 in all): one object covers most of the image, others have dozens" in said
