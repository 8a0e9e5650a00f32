"""A TIFF is the same picture at the same resolution however it is stored and whoever reads it, or refused alike."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from jaxtyping import UInt8
from PIL import Image

from colocate.base.errors import TileError
from colocate.data.decode import decode
from colocate.slides import pictures
from colocate.slides.slide import Slide
from tests.phantom_slide import painted

WIDTH, HEIGHT = 90, 70  # not of whole tiles or strips
LAYOUTS = {"tiled": {"tile": (32, 48)}, "strips": {"rowsperstrip": 16}, "strip": {"rowsperstrip": HEIGHT}}
TWO = ("tiled", "strips")
RANDOM = np.random.default_rng(0)
RGB, GREY = painted(WIDTH, HEIGHT), painted(WIDTH, HEIGHT)[:, :, 0]
ALPHA = RANDOM.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
DEEP = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
PALETTE = RANDOM.integers(0, 256, (3, 256)).astype(np.uint16) * 257
WHOLE = DEEP.astype(np.float64) / 257


def over(colours: np.ndarray, alpha: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """Colours on white, in real numbers."""
    share = alpha[:, :, None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def by_pillow(mode: str, samples: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.frombytes(mode, (WIDTH, HEIGHT), samples.tobytes()).convert("RGB"))


def rounded(values: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    values = np.rint(values).astype(np.uint8)
    return values if values.ndim == 3 else values[:, :, None].repeat(3, 2)


INKS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
DARKENED = np.rint(RGB * (ALPHA[:, :, None] / 255)).astype(np.uint8)
KINDS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {  # samples as stored, options, the colours they mean
    "grey": (GREY, {"photometric": "minisblack"}, rounded(GREY)),
    "grey, 16 bits": (DEEP[:, :, 0], {"photometric": "minisblack"}, rounded(WHOLE[:, :, 0])),
    "1 bit": (GREY > 99, {"photometric": "minisblack"}, rounded((GREY > 99) * 255)),
    "1 bit, white is 0": (GREY > 99, {"photometric": "miniswhite"}, rounded((GREY <= 99) * 255)),
    "white is 0": (GREY, {"photometric": "miniswhite"}, rounded(255 - GREY)),
    "white is 0, 16 bits": (DEEP[:, :, 0], {"photometric": "miniswhite"}, rounded(255 - WHOLE[:, :, 0])),
    "palette": (ALPHA, {"photometric": "palette", "colormap": PALETTE}, (PALETTE // 257).T[ALPHA].astype(np.uint8)),
    "RGB": (RGB, {"photometric": "rgb"}, RGB),
    "RGB, 16 bits": (DEEP, {"photometric": "rgb"}, rounded(WHOLE)),
    "straight alpha": (
        np.dstack([RGB, ALPHA]),
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        over(RGB, ALPHA),
    ),
    "straight alpha, 16 bits": (
        np.dstack([RGB, ALPHA]).astype(np.uint16) * 257,
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        over(RGB, ALPHA),
    ),
    "associated alpha": (
        np.dstack([DARKENED, ALPHA]),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]},
        DARKENED + (255 - ALPHA[:, :, None]),
    ),
    "no alpha": (np.dstack([RGB, ALPHA]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, RGB),
    "grey, alpha": (
        np.dstack([GREY, ALPHA]),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        over(GREY[:, :, None].repeat(3, 2), ALPHA),
    ),
    "CMYK": (INKS, {"photometric": "separated"}, by_pillow("CMYK", INKS)),
    "YCbCr": (DEEP.astype(np.uint8), {"photometric": "ycbcr"}, by_pillow("YCbCr", DEEP.astype(np.uint8))),
}


def write(path: Path, samples: np.ndarray, planes: str = "contig", **options: Any) -> Path:
    """At 0.5 micrometres per pixel."""
    samples = samples.transpose(2, 0, 1) if planes == "separate" else samples
    at = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    settings = {"metadata": None, "compression": "deflate", "planarconfig": planes, **at, **options}
    tifffile.imwrite(path, samples, **settings)
    return path


def check(path: Path, wanted: UInt8[np.ndarray, "h w 3"]) -> None:
    """As a slide, whole and in part, and as a tile."""
    slide = Slide.open(path)
    assert slide.mpp == pytest.approx(0.5) and slide.sizes[0] == (WIDTH, HEIGHT)
    assert np.array_equal(slide.read(0, 0, WIDTH, HEIGHT), wanted)
    assert np.array_equal(slide.read(13, 11, 40, 50), wanted[11:61, 13:53])
    assert np.array_equal(decode(path.read_bytes(), "tile").permute(1, 2, 0).numpy(), wanted)


APART = [kind for kind, (samples, *_) in KINDS.items() if samples.ndim == 3]  # can be stored in separate planes


@pytest.mark.parametrize(
    ("kind", "layout", "planes"), [*product(KINDS, LAYOUTS, ("contig",)), *product(APART, LAYOUTS, ("separate",))]
)
def test_samples_mean_the_same_colours(tmp_path: Path, kind: str, layout: str, planes: str) -> None:
    samples, options, wanted = KINDS[kind]
    check(write(tmp_path / "t.tif", samples, planes, **options, **LAYOUTS[layout]), wanted)


def test_pillow_reads_the_same(tmp_path: Path) -> None:
    """Of what it knows: an independent reader of the same files."""
    for kind in ("grey", "white is 0", "1 bit", "1 bit, white is 0", "palette", "RGB", "CMYK"):
        samples, options, wanted = KINDS[kind]
        with Image.open(write(tmp_path / "t.tif", samples, **options)) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), wanted), kind


CODECS: dict[str, dict[str, Any]] = {
    "none": {"compression": None},
    "deflate": {"compression": "deflate"},
    "deflate, predictor": {"compression": "deflate", "predictor": True},
    "LZW": {"compression": "lzw"},
    "LZW, predictor": {"compression": "lzw", "predictor": True},
    "PackBits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "LZMA": {"compression": "lzma"},
    "LERC": {"compression": "lerc"},
    "PNG": {"compression": "png"},
    "JPEG 2000": {"compression": "jpeg2000"},
    "JPEG 2000, lossy": {"compression": "jpeg2000", "compressionargs": {"level": 30}},
    "WebP": {"compression": "webp", "compressionargs": {"level": 101}},
    "WebP, lossy": {"compression": "webp", "compressionargs": {"level": 80}},
    "JPEG XL": {"compression": "jpegxl"},
    "JPEG XL, lossy": {"compression": "jpegxl", "compressionargs": {"level": 80}},
    "JPEG XR": {"compression": "jpegxr"},
    "JPEG": {"compression": "jpeg"},
    "JPEG, halved chroma": {"compression": "jpeg", "compressionargs": {"level": 90}, "subsampling": (2, 2)},
    "JPEG of RGB": {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
}


LOSSLESS = {*CODECS} - {
    "JPEG",
    "JPEG, halved chroma",
    "JPEG of RGB",
    "JPEG 2000, lossy",
    "WebP, lossy",
    "JPEG XL, lossy",
}
COLOUR_CODECS = ("JPEG", "JPEG, halved chroma", "JPEG of RGB", "WebP", "WebP, lossy")  # pack no single plane


@pytest.mark.parametrize(
    ("codec", "layout", "planes"),
    [
        *product(CODECS, TWO, ("contig",)),
        *product([codec for codec in CODECS if codec not in COLOUR_CODECS], TWO, ("separate",)),
    ],
)
def test_packed_pixels_are_those_of_the_codec(tmp_path: Path, codec: str, layout: str, planes: str) -> None:
    options = CODECS[codec] | LAYOUTS[layout]
    path = write(tmp_path / "t.tif", RGB, planes, photometric="rgb", **options)
    stored = tifffile.imread(path)
    stored = stored if planes == "contig" else stored.transpose(1, 2, 0)
    if codec in LOSSLESS:
        assert np.array_equal(stored, RGB)
    check(path, stored)


APERIO = "Aperio Image Library v10\n90x70 [0,0 90x70] (48x32)|AppMag = 20|MPP = 0.5"
FILES: dict[str, dict[str, Any]] = {
    "classic": {},
    "BigTIFF": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "BigTIFF, big-endian": {"bigtiff": True, "byteorder": ">"},
    "OME": {
        "metadata": {"PhysicalSizeX": 0.5, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"},
        "ome": True,
        "resolution": None,
    },
    "Aperio": {"description": APERIO, "resolution": None},
    "Aperio, lying tags": {"description": APERIO, "resolution": (72, 72)},
    "millimetres": {"resolution": (2000, 2000), "resolutionunit": 4},
    "inches": {"resolution": (50_800, 50_800), "resolutionunit": "INCH"},
}


@pytest.mark.parametrize(("file", "layout", "codec"), [*product(FILES, TWO, ("deflate", "LERC", "JPEG"))])
def test_files_say_the_same(tmp_path: Path, file: str, layout: str, codec: str) -> None:
    options = {**CODECS[codec], **LAYOUTS[layout], **FILES[file]}
    path = write(tmp_path / "t.tif", RGB, photometric="rgb", **options)
    check(path, tifffile.imread(path))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])  # the tag lies: what libtiff needs not, tifffile refuses
def test_jpeg_2000_of_aperio_is_left_to_openslide(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    stored = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    codec = {"compression": 34712, "compressionargs": {"codecformat": "j2k", "mct": False}}
    path = write(tmp_path / "t.svs", stored, photometric="ycbcr", tile=(32, 48), description=APERIO, **codec)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[259].overwrite(33003)
        file.pages.first.tags[530].overwrite(subsampling)
    slide = Slide.open(path)
    assert slide.mpp == 0.5 and np.abs(slide.read(0, 0, WIDTH, HEIGHT).astype(int) - RGB).max() <= 3


@pytest.mark.parametrize("nonsense", ["0", "0.0", "-1"])
def test_jpeg_2000_of_aperio_without_a_resolution_goes_by_the_next_tag(tmp_path: Path, nonsense: str) -> None:
    """As Aperio's JPEG does, which OpenSlide does not read."""
    codec = {"compression": 34712, "compressionargs": {"codecformat": "j2k", "mct": False}, "tile": (32, 48)}
    said = {"description": APERIO.replace("0.5", nonsense), "photometric": "ycbcr"}
    tagged = write(tmp_path / "tagged.svs", RGB, **said, **codec)
    silent = write(tmp_path / "silent.svs", RGB, resolution=None, resolutionunit=None, **said, **codec)
    for path in (tagged, silent):
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages.first.tags[259].overwrite(33003)
    assert Slide.open(tagged).mpp == 0.5 and Slide.open(silent, unsaid_mpp=0.25).mpp == 0.25
    with pytest.raises(TileError, match=r"silent\.svs does not say its micrometres per pixel \(an objective of 20x"):
        Slide.open(silent)


@pytest.mark.parametrize("layout", TWO)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("float32", "floating-point numbers of 32 bits"),
        ("float16", "floating-point numbers of 16 bits"),
        ("int16", "signed numbers of 16 bits"),
        ("int8", "signed numbers of 8 bits"),
        ("uint32", "whole numbers of 32 bits"),
        ("cielab", "CIELAB"),
        ("cfa", "CFA"),
        ("five channels", "5 channels that are no colours"),
        ("two channels", "2 channels that are no colours"),
        ("stack", "a stack of 3 pictures"),
        ("halved chroma", "packed in a way that is not read"),
        ("unknown codec", "packed in a way that is not read"),
        ("unknown predictor", "packed in a way that is not read"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, kind: str, words: str, layout: str) -> None:
    path, options = tmp_path / "t.tif", LAYOUTS[layout]
    if kind in ("float32", "float16", "int16", "int8", "uint32"):
        write(path, GREY.astype(kind), photometric="minisblack", **options)
    elif kind == "cfa":
        write(path, GREY, photometric="cfa", **options)
    elif kind == "five channels":
        write(path, np.dstack([RGB, RGB[:, :, :2]]), photometric="minisblack", **options)
    elif kind == "two channels":
        write(path, RGB[:, :, :2].copy(), photometric="minisblack", extrasamples=["unspecified"], **options)
    elif kind == "stack":
        write(path, RGB.transpose(2, 0, 1), photometric="minisblack", planarconfig=None, **options)
    else:
        write(path, RGB, photometric={"cielab": "cielab", "halved chroma": "ycbcr"}.get(kind, "rgb"), **options)
    changed = {"halved chroma": (530, (2, 2)), "unknown codec": (259, 34713)}
    if kind in changed:
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages.first.tags[changed[kind][0]].overwrite(changed[kind][1])
    if kind == "unknown predictor":
        write(path, RGB, photometric="rgb", predictor=True, **options)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages.first.tags[317].overwrite(77)
    said = []
    for read in (lambda: Slide.open(path), lambda: decode(path.read_bytes(), str(path))):
        with pytest.raises(TileError, match=rf"t\.tif holds? .*{words}|t\.tif is {words}") as caught:
            read()
        said.append(str(caught.value))
    assert said[0] == said[1] and "damaged" not in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("ending", [".png", ".webp", ".tif"])
def test_transparent_is_white_in_every_format(tmp_path: Path, ending: str) -> None:
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    options: dict[str, Any] = {"lossless": True, "exact": True} if ending == ".webp" else {}
    image.save(tmp_path / f"a{ending}", **options)
    slide = Slide.open(tmp_path / f"a{ending}", 0.5)
    assert np.array_equal(slide.read(0, 0, WIDTH, HEIGHT), over(RGB, ALPHA))


def test_12_bits_in_16_are_said_once_and_scaled_where_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_said", [])
    twelve = np.linspace(0, 4095, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    options: dict[str, Any] = {"photometric": "minisblack"}
    dark = write(tmp_path / "dark.tif", twelve, **options)
    with pytest.warns(UserWarning, match=r"dark\.tif has 16-bit samples of at most 4095: .*MaxSampleValue") as said:
        for _ in range(2):
            check(dark, rounded(twelve / 257))
    assert len(said) == 1
    Image.fromarray(twelve).save(tmp_path / "dark.png")
    monkeypatch.setattr(pictures, "_said", [])
    with pytest.warns(UserWarning, match=r"dark\.png has 16-bit samples"):
        decode((tmp_path / "dark.png").read_bytes(), "dark.png")
    for code in (281, 341):
        check(
            write(tmp_path / "said.tif", twelve, **options, extratags=[(code, "H", 1, 4095)]),
            rounded(twelve / 4095 * 255),
        )
    statistics = write(tmp_path / "max.tif", DEEP[:, :, 0], **options, extratags=[(281, "H", 1, 40_000)])
    check(statistics, rounded(WHOLE[:, :, 0]))
