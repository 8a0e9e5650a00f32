"""All that one GPU for ten minutes needs, in two loads of at most 58 MiB; run.sh beside this runs it.

PACK/whl          wheels for Python 3.12 that the machine lacks, and colocate's own
PACK/race         the race's folder: pictures as WebP, ImageNet's weights in half precision; run.sh halves GlaS there
PACK/race/tiles   the second load
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# Of requirements.lock, what a machine with torch, lightning and timm does not have, and what is run there needs.
# fmt: off
WHEELS = (
    "annotated-types", "beartype", "docstring-parser", "imagehash", "lightning-fabric", "openslide-bin",
    "openslide-python", "pycocotools", "pydantic", "pydantic-core", "segmentation-models-pytorch", "shapely",
    "typeguard", "typing-inspection", "tyro",
)
# fmt: on
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]


def wheels(out: Path) -> None:
    """Download the wheels at the lock's versions, and build colocate's."""
    lock = (ROOT / "requirements.lock").read_text()
    pins = [re.search(rf"^{name}==[^\s;]+", lock, re.M | re.I) for name in WHEELS]
    pip = [sys.executable, "-m", "pip", "--quiet"]
    where = [word for platform in PLATFORMS for word in ("--platform", platform)]
    kind = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *where]
    subprocess.run([*pip, "download", *kind, "-d", str(out), *(pin[0] for pin in pins if pin)], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(ROOT)], check=True)


def smaller(content: bytes, quality: int) -> bytes:
    """A picture as lossy WebP."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(file, "WEBP", quality=quality)
    return file.getvalue()


def tiles(race: Path, out: Path, quality: int) -> None:
    """The tiles as smaller pictures; of LC25000, whose tiles are variants of few originals, every sixth."""
    turn = 0
    for shard in sorted((race / "tiles").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    continue
                turn += 1
                if member.name.startswith("lc25000/") and turn % 6:
                    continue
                file = tar.extractfile(member)
                assert file is not None
                path = (out / member.name).with_suffix(".webp")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(smaller(file.read(), quality))


def labelled(folder: Path, out: Path, quality: int, every: int = 1) -> None:
    """A prepared set with smaller pictures; with `every`, of one image in so many."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("images", "masks", "*.png", "*.parquet", "train-*.csv"))
    with (out / "items.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::every]
    for row in rows:
        image = smaller((folder / row["path"]).read_bytes(), quality)
        mask = (folder / row["mask"]).read_bytes()
        row["path"] = str(Path(row["path"]).with_suffix(".webp"))
        for name, content in (("path", image), ("mask", mask)):
            path = out / row[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            row[f"{name}_sha256"] = sha256(content).hexdigest()
    with (out / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Make the pack, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--race", type=Path, default=Path("carry/race"), help="what `benchmarks/race pack` made")
    parser.add_argument("--out", type=Path, default=Path("carry/gpu"))
    parser.add_argument("--quality", type=int, default=93, help="of labelled images, as WebP")
    parser.add_argument("--tiles-quality", type=int, default=70, help="of tiles to train on")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    wheels(args.out / "whl")
    race = args.out / "race"
    tiles(args.race, race / "tiles", args.tiles_quality)
    labelled(args.race / "glas", race / "glas", args.quality)
    labelled(args.race / "ebhi", race / "ebhi", args.quality, every=8)
    weights = load_file(args.race / "imagenet.safetensors")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(halves, race / "imagenet.safetensors")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    for folder in sorted([args.out / "whl", *race.iterdir()]):
        files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
        print(f"{sum(path.stat().st_size for path in files) / MIB:6.1f} MiB  {folder}")
    tiles_size = sum(path.stat().st_size for path in (race / "tiles").rglob("*.webp"))
    for name, load in (("quality", size - tiles_size), ("tiles-quality", tiles_size)):
        print(f"{load / MIB:6.1f} MiB in a load" + (f": too much, lower --{name}" if load > 58 * MIB else ""))


if __name__ == "__main__":
    main()
