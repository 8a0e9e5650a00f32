"""What grows with slides and what must not: `python benchmarks/limits.py` prints a table in Markdown."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
from pyarrow import parquet

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.slides import write_slide  # noqa: E402
from colocate.slides.manifest import SCHEMA  # noqa: E402

TILES = 10_000_000
SLIDES = 1_000
MEASURED = """
import resource, sys, time
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
{work}
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spent = time.perf_counter() - began
print(f"{{spent:.1f}} s | {{after / 1024:,.0f}} MiB, of which {{before / 1024:,.0f}} before it began")
"""
CUT = """
from colocate.slides.settings import TilingConfig
from colocate.slides.one_slide import cut
from colocate.slides.listing import Listed
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
cut(Listed("slide", Path(sys.argv[1])), TilingConfig(), Path(sys.argv[2]), manifest_only=False)
"""
OPEN = """
from colocate.data.index import Index
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
index = Index.build(Path(sys.argv[1]), Path(sys.argv[2]))
index.mpp, index.source_numbers, index.fingerprint
again = time.perf_counter()
Index.open(sys.argv[2])
print(f"opened again in {time.perf_counter() - again:.2f} s; built in ", end="")
"""


def measured(work: str, *arguments: Path) -> str:
    """Seconds and peak memory of a piece of work in a process of its own."""
    command = [sys.executable, "-c", MEASURED.format(work=work), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def write_large_manifest(path: Path, shards: bool) -> Path:
    """Ten million rows as `colocate tile` would write them, and of each shard its first tile."""
    each, tile = TILES // SLIDES, bytes(18_000)
    (path.parent / "shards").mkdir(exist_ok=True)
    with parquet.ParquetWriter(path, SCHEMA, write_page_checksum=True) as writer:
        for slide in range(SLIDES):
            columns = {
                "slide": [f"slide{slide:05d}"] * each,
                "source": [f"patient{slide // 2:05d}"] * each,
                "path": [f"/data/slides/slide{slide:05d}.svs"] * each,
                "x": np.arange(each, dtype=np.int32) % 100 * 256,
                "y": np.arange(each, dtype=np.int32) // 100 * 256,
                "mpp": np.full(each, 0.5, np.float32),
                "slide_mpp": np.full(each, 0.5, np.float32),
                "size": np.full(each, 256, np.int32),
                "tissue": np.ones(each, np.float32),
                "sharpness": np.full(each, 9, np.float32),
            }
            if shards:
                (path.parent / "shards" / f"slide{slide:05d}-0000.tar").write_bytes(tile)
                columns |= {
                    "shard": [f"shards/slide{slide:05d}-0000.tar"] * each,
                    "offset": np.arange(each) * 20_480,
                    "bytes": np.full(each, len(tile), np.int64),
                    "crc32": np.full(each, crc32(tile), np.uint32),
                }
            arrays = [
                pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(each, field.type)
                for field in SCHEMA
            ]
            writer.write_table(pa.table(arrays, schema=SCHEMA))
    return path


def main() -> None:
    print("| work | time | peak memory of the process |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, levels in ((2_048, None), (20_480, None), (20_480, 1)):
            slide = write_slide(folder / f"{side}-{levels}.tif", side, levels=levels)
            how = "without smaller levels" if levels else "with all levels"
            print(f"| cutting a slide of {side:,} x {side:,} px {how} | {measured(CUT, slide, folder / slide.stem)} |")
        for shards in (True, False):
            manifest = write_large_manifest(folder / f"{shards}.parquet", shards)
            what = f"opening a manifest of {TILES:,} tiles {'in shards' if shards else 'to be read from slides'}"
            print(f"| {what}, index written and fingerprinted | {measured(OPEN, manifest, folder / 'index.arrow')} |")


if __name__ == "__main__":
    main()
