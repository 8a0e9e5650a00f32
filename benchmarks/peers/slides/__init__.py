"""Slides cut into tiles: speed, memory, whether tiles show what they say, and masks against outlines drawn by hand.

Two real slides and a made-up one of 40,000 x 40,000 px are cut into JPEG tiles of 256 px without overlap, where the
peer finds tissue by its own defaults: at 0.5 micrometres per pixel, but the second, whose finest are 0.686, at 1.0. A
script beside this file does it within the peer's environment, pinned to one core; pinned to two it cuts two copies of
the slide, so that a peer may share out slides or tiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.environments import OURS, Peer
from benchmarks.peers.processes import family, memory_mb
from benchmarks.peers.slides.agreement import SCORED_UM, Mask, drawn, of_masks, of_tiles
from benchmarks.slides import MPP, write_slide
from colocate.base.errors import UserError
from colocate.base.text import grid

HERE = Path(__file__).absolute().parent
TORCH = ("torch==2.12.0", "torchvision==0.27.0")  # the newest that TIAToolbox and PathML allow
TRIDENT = "git+https://github.com/mahmoodlab/TRIDENT.git@a91fa8490e0210ebbbe58452c3babe009e0ab7ca"  # on no index
PEERS = (
    Peer(OURS, (), "Apache-2.0"),
    Peer("hs2p", ("hs2p[openslide]==6.1.0", "openslide-bin==4.0.1.2"), "Apache-2.0"),
    Peer("dlup", ("dlup[openslide]==0.9.4", "openslide-bin==4.0.1.2"), "Apache-2.0"),
    Peer("histolab", ("histolab==0.7.0",), "Apache-2.0"),
    Peer("tiatoolbox", ("tiatoolbox==2.1.3", *TORCH), "BSD-3-Clause"),
    Peer("trident", (f"trident @ {TRIDENT}", *TORCH), "CC-BY-NC-ND-4.0"),
    Peer("lazyslide", ("lazyslide==0.13.0", *TORCH), "MIT"),
    Peer(
        "slideflow",
        ("slideflow==3.0.2", "setuptools<81", "openslide-python==1.4.7", "openslide-bin==4.0.1.2", *TORCH),
        "Apache-2.0",
    ),
    Peer("pathml", ("pathml==3.0.8", *TORCH), "GPL-2.0"),
)
SIZE = 256
SIDE_PX, SHARE = 40_000, 0.1  # of the made-up slide, and of it that is tissue: 2,500 tiles
LIMIT_S = 600
LOOK_EVERY_S = 0.05


def measure(peer: Peer, python: Path, data: Path, smoke: bool) -> Iterator[dict[str, Any]]:
    """The rows of one peer: a slide and a number of cores each."""
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        folder = Path(temporary)
        for slide, mpp, *truth in _slides(data, smoke):
            tiles = 0  # known once one core has cut them
            for cores in (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,):
                row = {"version": _version(peer), "slide": slide.stem, "mpp": mpp, "cores": cores}
                try:
                    row |= _cut(peer, python, slide, folder / f"{slide.stem}-{cores}", mpp, cores, tiles, truth)
                    tiles = row["tiles"]
                except UserError as error:
                    row["error"] = str(error)
                yield row


def _slides(data: Path, smoke: bool) -> Iterator[tuple[Path, float, Mask, Mask]]:
    """Each slide, micrometres per pixel of its tiles, where its tissue is and where that counts."""
    for name, mpp in (("cmu-1-small-region.svs", 0.5), ("her2st_C2_pyramid.tif", 1.0)):
        yield (data.absolute() / "slides" / name, mpp, *drawn(data / "slides" / name))
    side = 4096 if smoke else SIDE_PX
    slide = Path(tempfile.gettempdir()) / f"peers-{side}-{SHARE}" / "made-up.tif"
    if not slide.exists():  # it takes a minute, so one is for all peers
        slide.parent.mkdir(exist_ok=True)
        write_slide(slide.with_suffix(".part"), side, share=SHARE).rename(slide)
    y, x = (np.mgrid[: side * MPP / SCORED_UM, : side * MPP / SCORED_UM] + 0.5) * SCORED_UM / MPP - side / 2
    tissue = np.hypot(x, y) < side * (SHARE / np.pi) ** 0.5
    yield slide, MPP, tissue, np.ones_like(tissue)


def _version(peer: Peer) -> str:
    """Of the peer, by its first requirement; of ours as it is."""
    if peer.name == OURS:
        from colocate import __version__

        return __version__
    return peer.requirements[0].replace("@", "==").rpartition("==")[2][:7]


def _cut(
    peer: Peer, python: Path, slide: Path, out: Path, mpp: float, cores: int, tiles: int, truth: list[Mask]
) -> dict[str, Any]:
    """One row: a slide cut by one core, its tiles and mask looked at; or two copies of it, of so many tiles, by two."""
    copies = []
    for number in range(cores):
        copy = out / "slides" / f"{slide.stem}-{number}{slide.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(slide)
        Image.fromarray(truth[0]).save(copy.with_suffix(".mask.png"))  # for a peer that finds no tissue itself
        copies.append(copy)
    script = [str(python.absolute()), str(HERE / f"with_{peer.name}.py")]
    words = [str(out / "tiles"), str(mpp), str(SIZE), str(cores), *map(str, copies)]
    said, seconds_all, peak_mb = _watched([*script, "cut", *words], python, cores)
    seen = {} if cores > 1 else _watched([*script, "look", *words], python, cores)[0]
    tiles = seen.get("tiles", tiles)
    row = {
        "tiles": tiles,
        "seconds": round(said["seconds"], 3),
        "cpu_s": round(said["cpu_s"], 3),
        "seconds_with_imports": round(seconds_all, 3),
        "tiles_per_s_per_core": round(tiles / said["seconds"], 1),  # there are as many copies as cores
        "peak_mb": round(peak_mb),
    }
    look = out / "tiles" / "look"
    row |= of_tiles(slide, look)
    return row | (of_masks(look / "mask.png", *truth) if (look / "mask.png").exists() else {})


def _watched(command: list[str], python: Path, cores: int) -> tuple[dict[str, Any], float, float]:
    """Run a script on so many cores: what it says last, its seconds, and the most MB of it and its children.

    Raises:
        UserError: it fails, or takes too long.
    """
    variables = os.environ | {"OMP_NUM_THREADS": str(cores)}
    if python != Path(sys.executable):
        variables.pop("PYTHONPATH", None)
    began = time.perf_counter()
    pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores])), *command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(pinned, stdout=out, stderr=err, env=variables, cwd=tempfile.gettempdir())
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, memory_mb(family(process.pid)))
            if time.perf_counter() - began > LIMIT_S:
                for one in family(process.pid):
                    one.kill()
                process.wait()
                raise UserError(f"{Path(command[1]).name} took more than {LIMIT_S} s")
            time.sleep(LOOK_EVERY_S)
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        said, complaint = out.read().split("\n"), " ".join(err.read().split())
    if process.returncode:
        raise UserError(f"{Path(command[1]).name} {command[2]} failed: {complaint[-400:]}")
    return json.loads([line for line in said if line.startswith("{")][-1]), seconds, peak_mb


CASES = {"cmu-1-small-region": "CMU-1", "her2st_C2_pyramid": "her2st", "made-up": "made-up"}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: speed, pixels and masks, a line a peer; of several rows of a case the last counts."""
    if not rows:
        return []
    last = {(row["peer"], row.get("slide", ""), row.get("cores", 1)): row for row in rows}
    peers = list(dict.fromkeys(peer for peer, *_ in last))

    def grid_of(heads: dict[str, tuple[str, str, int]]) -> str:
        """heads: of each column the figure, and its slide and cores."""
        cells = [
            [_shown(last.get((peer, slide, cores), {}).get(name)) for name, slide, cores in heads.values()]
            for peer in peers
        ]
        kept = [[peer, *line] for peer, line in zip(peers, cells, strict=True) if set(line) != {NONE}]
        return grid([["peer", *heads], *kept], left=1)

    speed: dict[str, tuple[str, str, int]] = {
        "tiles/s a core": ("tiles_per_s_per_core", "made-up", 1),
        "on two": ("tiles_per_s_per_core", "made-up", 2),
        "peak MB": ("peak_mb", "made-up", 1),
        "two": ("peak_mb", "made-up", 2),
    }
    speed |= {f"s, {short}": ("seconds_with_imports", slide, 1) for slide, short in CASES.items()}
    speed |= {f"tiles, {short}": ("tiles", slide, 1) for slide, short in CASES.items()}
    pixels: dict[str, tuple[str, str, int]] = {
        f"{head}, {short}": (name, slide, 1)
        for name, head in (("difference_levels", "off by"), ("jpeg_levels", "JPEG"), ("placed", "placed"))
        for slide, short in CASES.items()
    }
    pixels["µm/px, her2st"] = ("tile_mpp", "her2st_C2_pyramid", 1)
    masks = {
        f"{name}, {short}": (name, slide, 1)
        for name in ("dice", "coverage", "precision")
        for slide, short in CASES.items()
    }
    failed = [f"- {row['peer']}, {row.get('slide', 'all')}: {row['error']}" for row in last.values() if "error" in row]
    return "\n\n".join(filter(None, [*map(grid_of, (speed, pixels, masks)), "\n".join(failed)])).split("\n")


NONE = "-"


def _shown(figure: float | None) -> str:
    """Three figures that count."""
    return NONE if figure is None else f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
