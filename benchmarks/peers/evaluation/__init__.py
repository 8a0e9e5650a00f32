"""Are scores of segmentations what the libraries of each score say, and what do they cost?"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.peers.environments import Peer
from benchmarks.peers.evaluation.cases import write
from colocate.base.errors import UserError
from colocate.base.text import grid

_TORCH = ("torch==2.13.0", "torchvision==0.28.0")
PEERS: tuple[Peer, ...] = (
    Peer("colocate", (), "Apache-2.0"),
    Peer("pycocotools", ("pycocotools==2.0.11", "numpy==2.4.6"), "BSD-2-Clause"),
    Peer("faster-coco-eval", ("faster-coco-eval==1.8.0", "numpy==2.4.6"), "Apache-2.0"),
    Peer("hotcoco", ("hotcoco==1.3.0", "numpy==2.4.6"), "MIT"),
    Peer("panopticapi", ("panopticapi-lite==0.2.0",), "BSD-2-Clause"),  # the authors' own is on GitHub only
    Peer("torchmetrics", ("torchmetrics==1.9.0", *_TORCH), "Apache-2.0"),
    Peer("monai", ("monai==1.6.1", "scipy==1.17.1", *_TORCH), "Apache-2.0"),
    Peer("paper", ("scipy==1.17.1", "numpy==2.4.6"), "ours"),
)
REFERENCE = {"AP": "pycocotools", "PQ": "panopticapi", "Dice": "torchmetrics", "GlaS": "paper"}
TASKS = {
    "colocate": ("colocate", ("AP", "PQ", "Dice", "GlaS")),
    "pycocotools": ("coco", ("AP",)),
    "faster-coco-eval": ("coco", ("AP",)),
    "hotcoco": ("coco", ("AP", "PQ", "Dice")),
    "panopticapi": ("panopticapi", ("PQ",)),
    "torchmetrics": ("torchmetrics", ("PQ", "Dice")),
    "monai": ("monai", ("PQ",)),
    "paper": ("paper", ("GlaS",)),
}
"""The script (inside/in_NAME.py) that runs in each peer's environment, and the scores it knows."""
CASES = {
    "AP": ("glands", "nuclei", "awkward", "crowds"),
    "PQ": ("glands", "nuclei", "awkward"),
    "Dice": ("glands", "nuclei", "awkward"),
    "GlaS": ("glands", "awkward"),
}
LARGE = ("glands", "nuclei")
TITLES = {
    "AP": "Average precision of boxes and masks, AP, AP50 and AP75",
    "PQ": "Panoptic quality of classes: PQ, SQ and RQ",
    "Dice": "Dice and Jaccard of each class of pixels, and their means",
    "GlaS": "Object F1, object Dice and object Hausdorff distance of the GlaS challenge",
}


def measure(peer: Peer, python: Path, data: Path, smoke: bool) -> Iterator[dict[str, Any]]:
    """A row for each score and case: figures, processor seconds, and the peak of memory beyond what was held before.

    Each is a process of its own on one thread.
    """
    script, scores = TASKS[peer.name]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    with TemporaryDirectory() as made:
        for case in dict.fromkeys(case for score in scores for case in CASES[score]):
            write(case, Path(made) / case, data, smoke)
        for score in scores:
            for case in CASES[score]:
                words = [Path(__file__).parent / "inside" / f"in_{script}.py", Path(made) / case, score, peer.name]
                done = subprocess.run(
                    [python, *words],
                    env={**os.environ, **one_thread, "PYTHONPATH": "src" if peer.name == "colocate" else ""},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise UserError(f"{peer.name} fails at {score} of {case}: {' '.join(done.stderr.split())[-600:]}")
                yield {"score": score, "case": case, "threads": 1, "licence": peer.licence, **json.loads(done.stdout)}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A table a score: how far each peer is off the reference at most, and what the large cases cost."""
    newest = {(row["score"], row["peer"], row["case"]): row for row in rows if "error" not in row}
    lines: list[str] = []
    for score, title in TITLES.items():
        large = [case for case in CASES[score] if case in LARGE]
        cells = [["", *(f"{case}: off by" for case in CASES[score])]]
        cells[0] += [f"{case}: {unit}" for case in large for unit in ("s", "MB")]
        for peer in (peer.name for peer in PEERS if (score, peer.name, CASES[score][0]) in newest):
            mine = {case: newest[score, peer, case] for case in CASES[score]}
            cells.append([f"{peer} {mine[large[0]]['version']}"])
            for case, row in mine.items():
                right = newest.get((score, REFERENCE[score], case), row)["figures"]
                off = max(abs(one - right[name]) for name, one in row["figures"].items() if name in right)
                cells[-1].append("reference" if peer == REFERENCE[score] else f"{off:.0e}" if off else "0")
            cells[-1] += [
                text for case in large for text in (_short(mine[case]["cpu_s"]), f"{mine[case]['peak_mb']:.0f}")
            ]
        if len(cells) > 1:
            lines += [f"{title}:", "", *grid(cells, left=1).splitlines(), ""]
    failed = {row["peer"]: row["error"] for row in rows if "error" in row}
    return lines + [f"{peer}: {error}" for peer, error in failed.items()]


def _short(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"
