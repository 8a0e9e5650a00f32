"""What has been found so far, as a folder that can be put into docs: table, curves and overlays, each below 300 kB."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.glas.archives import LIST
from benchmarks.glas.plan import RANDOM, Plan, Stage, stored_plan
from colocate.errors import UserError
from colocate.evaluate import table as tables_of
from colocate.evaluate.markdown import markdown
from colocate.evaluate.results import Result, read_results
from colocate.figures import compare
from colocate.figures.scores import scores
from colocate.files import write_atomically
from colocate.journal import has_rows

MOST_BYTES = 300_000


def report(out: Path, against: str | None = None, by: tables_of.Drawn = "cases") -> None:
    """Collect what is there into WORK/report: README.md, table.md, table.csv, table.png, curves.png, overlays.

    Args:
        out: The folder that `run` works in.
        against: The recipe that others are compared with (default: moco-v2 where it is there, else random).
        by: What intervals draw anew, cases or images.
    """
    plan = stored_plan(out)
    if plan is None:
        raise UserError(f"{out} has no plan.json: give the --out of `run`")
    packed = json.loads((out / LIST).read_text())
    results = read_results([out / "results"]) if any((out / "results").glob("*/result.json")) else []
    begun = [out / "runs" / name for name in plan.pretrained if has_rows(out / "runs" / name)]
    folder = out / "report"
    blocks = [
        "# GlaS: which pretraining segments better?",
        "\n".join(f"- {line}" for line in facts(plan, results, packed)),
    ]
    if results:
        blocks += _tables(out, folder, results, against, by)
    if len(begun) > 1:
        curves = folder / "curves.png"
        words = compare(begun, curves)
        _fit(curves)
        blocks += ["## Pretraining", words, "![curves](curves.png)"]
    if results:
        blocks.append("## Predictions")
        blocks += [f"{name}:\n\n![{name}]({file})" for name, file in _overlays(folder, results)]
    text = "\n\n".join(blocks) + "\n"
    write_atomically(folder / "README.md", lambda file: file.write(text.encode()))
    print(f"done: {folder}/README.md")


def facts(plan: Plan, results: Sequence[Result], packed: dict[str, Any]) -> list[str]:
    """What has to be known of it all, a line each."""
    size = plan.size
    there = {(result.backbone.label, result.dataset.split, result.seed) for result in results}
    wanted = [stage for stage in plan.stages() if stage.does == "evaluate"]
    missing = [stage for stage in wanted if stage[1:] not in there]
    cases = packed["cases"]
    tiles = [f"{count:,} of {kind} ({cases[kind] or 'unknown'} cases)" for kind, count in packed["tiles"].items()]
    lines = [
        f"Tiles: {', '.join(tiles)}; of GlaS crops of {packed['tile_px']} px of the {len(packed['cut'])} images that "
        "every split trains on.",
        f"Pretraining: {size.pairs:,} pairs of views of {size.view_px} px, batch {size.batch}, {size.steps:,} steps, "
        f"{size.backbone}, precision {size.precision}, queue {size.queue_length:,}, seed {size.pretrain_seed}; else "
        "each recipe's -small form.",
        f"Fine-tuning: Mask R-CNN, {size.instances.fit.steps:,} steps of {size.instances.fit.batch}, "
        f"precision {size.fit_precision}; its seed differs, pretraining's does not.",
        f"{len(wanted) - len(missing)} of {len(wanted)} evaluations are done{_lacking(missing)}",
    ]
    return [f"{line.rstrip('.')}." for line in lines]


def _lacking(missing: Sequence[Stage]) -> str:
    names = [f"{stage.recipe} ({stage.split}) seed {stage.seed}" for stage in missing]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; without {', '.join(names[:8])}{more}" if names else ""


def _tables(out: Path, folder: Path, results: Sequence[Result], against: str | None, by: tables_of.Drawn) -> list[str]:
    labels = {result.backbone.label for result in results}
    reference = against or next((name for name in ("moco-v2", RANDOM) if name in labels), None)
    tables = tables_of.collect([out / "results"], reference, by)
    text = markdown(tables) + "\n"
    tables_of.write(tables, text, folder)
    told = json.loads((folder / "table.json").read_text())
    for table in told:
        for backbone in table["backbones"]:  # where they lay is nobody's business
            backbone["files"] = [str(Path(*Path(file).parts[-3:])) for file in backbone["files"]]
            backbone["origin"] = str(Path(*Path(backbone["origin"]).parts[-2:]))
    packed = json.dumps(told, indent=1)
    write_atomically(folder / "table.json", lambda file: file.write(packed.encode()))
    scores(tables, folder / "table.png")
    _fit(folder / "table.png")
    return [text.rstrip(), "![scores](table.png)"]


def _overlays(folder: Path, results: Sequence[Result]) -> list[tuple[str, str]]:
    """Copies the overlays of each backbone's first seed; returns words and the file's name of each."""
    copied: dict[tuple[str, str], tuple[str, str]] = {}
    for result in sorted(results, key=lambda result: (result.dataset.split, result.backbone.label, result.seed)):
        split, label = key = (result.dataset.split, result.backbone.label)
        source = Path(result.path).with_name("overlays.png")
        if key in copied or not source.exists():
            continue
        name = f"overlays-{split}-{label}.png"
        content = source.read_bytes()
        write_atomically(folder / name, lambda file, content=content: file.write(content))
        _fit(folder / name)
        copied[key] = (f"{label}, split {split}, seed {result.seed}", name)
    return list(copied.values())


def _fit(path: Path) -> None:
    """Make a PNG smaller, if it must be, by fewer colours and then fewer pixels."""
    if path.stat().st_size < MOST_BYTES:
        return
    with Image.open(path) as image:
        whole = image.convert("RGB")
    for share in (1.0, 0.8, 0.6, 0.4):
        file = io.BytesIO()
        small = whole.resize((round(share * whole.width), round(share * whole.height)), Image.Resampling.LANCZOS)
        small.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() < MOST_BYTES:
            break
    path.write_bytes(file.getvalue())
