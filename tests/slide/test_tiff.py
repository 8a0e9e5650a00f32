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
LAYOUTS = {"tiled": {"tile": (32, 48)}, "strips": {"rowsperstrip": 16}}
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
CLEAR, CLEAR_16 = np.dstack([RGB, ALPHA]), np.dstack([RGB, ALPHA]).astype(np.uint16) * 257
CLEAR_GREY, GREY_OVER = np.dstack([GREY, ALPHA]), over(GREY[:, :, None].repeat(3, 2), ALPHA)
KINDS: dict[str, tuple[np.ndarray, str, np.ndarray]] = {  # samples, photometric and extra sample, colours they mean
    "grey": (GREY, "minisblack", rounded(GREY)),
    "grey, 16 bits": (DEEP[:, :, 0], "minisblack", rounded(WHOLE[:, :, 0])),
    "1 bit": (GREY > 99, "minisblack", rounded((GREY > 99) * 255)),
    "1 bit, white is 0": (GREY > 99, "miniswhite", rounded((GREY <= 99) * 255)),
    "white is 0": (GREY, "miniswhite", rounded(255 - GREY)),
    "white is 0, 16 bits": (DEEP[:, :, 0], "miniswhite", rounded(255 - WHOLE[:, :, 0])),
    "palette": (ALPHA, "palette", (PALETTE // 257).T[ALPHA].astype(np.uint8)),
    "RGB": (RGB, "rgb", RGB),
    "RGB, 16 bits": (DEEP, "rgb", rounded(WHOLE)),
    "straight alpha": (CLEAR, "rgb unassalpha", over(RGB, ALPHA)),
    "straight alpha, 16 bits": (CLEAR_16, "rgb unassalpha", over(RGB, ALPHA)),
    "associated alpha": (np.dstack([DARKENED, ALPHA]), "rgb assocalpha", DARKENED + (255 - ALPHA[:, :, None])),
    "no alpha": (CLEAR, "rgb unspecified", RGB),
    "grey, alpha": (CLEAR_GREY, "minisblack unassalpha", GREY_OVER),
    "CMYK": (INKS, "separated", by_pillow("CMYK", INKS)),
    "YCbCr": (DEEP.astype(np.uint8), "ycbcr", by_pillow("YCbCr", DEEP.astype(np.uint8))),
}


def options_of(kind: str) -> dict[str, Any]:
    photometric, *extra = KINDS[kind][1].split()
    colours = {"colormap": PALETTE} if photometric == "palette" else {}
    return {"photometric": photometric, **colours, **({"extrasamples": extra} if extra else {})}


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
    samples, _, wanted = KINDS[kind]
    check(write(tmp_path / "t.tif", samples, planes, **options_of(kind), **LAYOUTS[layout]), wanted)


def test_pillow_reads_the_same(tmp_path: Path) -> None:
    """Of what it knows: an independent reader of the same files."""
    for kind in ("grey", "white is 0", "1 bit", "1 bit, white is 0", "palette", "RGB", "CMYK"):
        samples, _, wanted = KINDS[kind]
        with Image.open(write(tmp_path / "t.tif", samples, **options_of(kind))) as image:
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


JPEGS = ("JPEG", "JPEG, halved chroma", "JPEG of RGB")
COLOUR_CODECS = (*JPEGS, "WebP", "WebP, lossy")  # pack no single plane


@pytest.mark.parametrize(
    ("codec", "layout", "planes"),
    [
        *product(CODECS, LAYOUTS, ("contig",)),
        *product([codec for codec in CODECS if codec not in COLOUR_CODECS], LAYOUTS, ("separate",)),
    ],
)
def test_packed_pixels_are_those_of_the_codec(tmp_path: Path, codec: str, layout: str, planes: str) -> None:
    options = CODECS[codec] | LAYOUTS[layout]
    path = write(tmp_path / "t.tif", RGB, planes, photometric="rgb", **options)
    stored = tifffile.imread(path)
    stored = stored if planes == "contig" else stored.transpose(1, 2, 0)
    if codec not in JPEGS and not codec.endswith("lossy"):
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


@pytest.mark.parametrize(("file", "layout", "codec"), [*product(FILES, LAYOUTS, ("deflate", "LERC", "JPEG"))])
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


GREYS, COLOURS = {"photometric": "minisblack"}, {"photometric": "rgb"}
UNREAD: dict[str, tuple[np.ndarray, dict[str, Any], dict[int, Any], str]] = {  # samples, options, changed tags, words
    "float32": (GREY.astype(np.float32), GREYS, {}, "floating-point numbers of 32 bits"),
    "float16": (GREY.astype(np.float16), GREYS, {}, "floating-point numbers of 16 bits"),
    "int16": (GREY.astype(np.int16), GREYS, {}, "signed numbers of 16 bits"),
    "uint32": (GREY.astype(np.uint32), GREYS, {}, "whole numbers of 32 bits"),
    "CIELAB": (RGB, {"photometric": "cielab"}, {}, "CIELAB"),
    "CFA": (GREY, {"photometric": "cfa"}, {}, "CFA"),
    "five channels": (np.dstack([RGB, RGB[:, :, :2]]), GREYS, {}, "5 channels that are no colours"),
    "two channels": (RGB[:, :, :2], GREYS | {"extrasamples": ["unspecified"]}, {}, "2 channels that are no colours"),
    "stack": (RGB.transpose(2, 0, 1), GREYS | {"planarconfig": None}, {}, "a stack of 3 pictures"),
    "halved chroma": (RGB, {"photometric": "ycbcr"}, {530: (2, 2)}, "packed in a way that is not read"),
    "codec": (RGB, COLOURS, {259: 34713}, "packed in a way that is not read"),
    "predictor": (RGB, COLOURS | {"predictor": True}, {317: 77}, "packed in a way that is not read"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_is_named(tmp_path: Path, kind: str, layout: str) -> None:
    samples, options, changed, words = UNREAD[kind]
    path = write(tmp_path / "t.tif", np.ascontiguousarray(samples), **options, **LAYOUTS[layout])
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag, value in changed.items():
            file.pages.first.tags[tag].overwrite(value)
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
