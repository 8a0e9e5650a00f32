"""Cut slides into tiles, several at once: `colocate tile`, and slides given where training wants tiles."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from colocate.base.errors import TileError, UserError
from colocate.base.files import check_writable, claimed, read_json, remove_unfinished, write_atomically
from colocate.base.plugins import load, name_of, sha256_of
from colocate.base.processes import cores, start_method, start_worker
from colocate.base.text import Terminal, changes, counted
from colocate.slides.listing import MANIFEST, SETTINGS, Listed, find_slides
from colocate.slides.manifest import SLIDES, notes_of, write_manifest
from colocate.slides.one_slide import cut
from colocate.slides.runner import FAILED, Meter, Quarantine
from colocate.slides.settings import TilingConfig

MADE = (SETTINGS, MANIFEST, SLIDES, FAILED, "index.html", "parts", "shards", "overlays")
RETRIES = 3  # of a slide whose worker was lost
WAIT_S = 20  # for the scheduler to answer


class Tiled(NamedTuple):
    """The outcome of a call of `tile`."""

    tiles: int
    """Tiles in the manifest; 0 while slides are missing."""
    missing: int
    """Slides still to be cut by other parts."""
    failed: int
    empty: int = 0
    """Slides without a tile."""
    enlarged: int = 0
    """Slides coarser than their tiles."""


def tile(
    slides: Sequence[Listed],
    out: Path,
    config: TilingConfig | None = None,
    *,
    manifest_only: bool = False,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    scheduler: str | None = None,
    tissue: str | None = None,
) -> Tiled:
    """Cut slides into OUT/shards (unless `manifest_only`) and write OUT/manifest.parquet when all are done.

    The files do not depend on `workers` (processes; None: one a core), on `part` (the k-th of n shares of the slides,
    from 1) or on `scheduler` (the address of a Dask scheduler whose workers see the same folders). The same call goes
    on where another stopped, and tries again what failed. Several at once share the slides: none is cut twice, and each
    ends when all of its slides are done. `tissue` names a function of the user's own, as `my_module.py:function`, that
    finds tissue in place of `tissue_mask`.

    Raises UserError: OUT holds tiles of other settings or cannot be written, the disk is full, no slide could be cut,
    `tissue` is no function or gives no mask.
    """
    config = config or TilingConfig()
    out = out.absolute()
    check_writable(out)
    remove_unfinished(out)
    own_tissue = {}
    if tissue is not None:
        function = load(tissue)
        if not inspect.isfunction(function):
            raise UserError(f"--tissue {tissue} is not a function")
        tissue = name_of(function)
        own_tissue = {"tissue": tissue, "tissue_sha256": sha256_of(function)}
    _check_settings(out, {"manifest_only": manifest_only} | asdict(config) | own_tissue)
    own = slides[part[0] - 1 :: part[1]]
    before = {slide.name: notes for slide in own if (notes := notes_of(out, slide))}
    misnamed = {slide.name: reason for slide in slides if (reason := slide.misnamed(out))}
    for slide in own:
        if slide.name in misnamed:
            Quarantine(out / FAILED).add(slide.name, slide.path, misnamed[slide.name])
            Terminal().say(f"note: {slide.name} is left out: {misnamed[slide.name]}")
    if waiting := [slide for slide in own if slide.name not in before | misnamed]:
        (out / MANIFEST).unlink(missing_ok=True)  # it would name shards that are cut anew
        with _executor(min(workers or cores(), len(waiting)), scheduler) as executor:
            _cut_all(executor, waiting, (config, out, manifest_only, tissue))
        remove_unfinished(out)
    return _conclude(slides, out, before, misnamed)


def read_part(text: str) -> tuple[int, int]:
    """Parse K/N.

    >>> read_part("3/16")
    (3, 16)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part {text}: give K/N, the K-th of N shares, such as 3/16")
    return int(found[1]), int(found[2])


def sentence(done: Tiled, out: Path) -> str:
    """The summary that the command prints."""
    parts = [f"done: {counted(done.tiles, 'tile')} in {out / MANIFEST}"]
    if done.missing:
        parts = [f"done with this part; {counted(done.missing, 'slide')} to come before {out / MANIFEST} is written"]
    if done.empty:
        parts.append(f"{counted(done.empty, 'slide')} without a tile (see {out}/overlays)")
    if done.enlarged:
        parts.append(f"{counted(done.enlarged, 'slide')} enlarged from a coarser resolution (see {out / SLIDES})")
    if done.failed:
        parts.append(f"{counted(done.failed, 'slide')} failed: see {out / FAILED}")
    return "; ".join(parts)


def _cut_all(executor: Executor, slides: list[Listed], how: tuple[TilingConfig, Path, bool, str | None]) -> None:
    def submit(slides: list[Listed], wait: bool) -> dict[Future[int | str | None], Listed]:
        return {executor.submit(_task, slide, *how, wait): slide for slide in slides}

    futures = submit(slides, wait=False)
    meter = Meter(len(slides), "tile")
    try:
        with meter:  # after the processes have started: no thread should be about when they fork
            while futures:
                elsewhere = []
                for future in as_completed(futures):
                    slide, found = futures[future], future.result()
                    if found is None:
                        elsewhere.append(slide)
                    elif isinstance(found, str):
                        meter.end(slide.name, found)
                    else:
                        meter.advance(found)
                        meter.end(slide.name)
                if elsewhere:
                    meter.say(f"waiting for {counted(len(elsewhere), 'slide')} that another process is cutting")
                futures = submit(elsewhere, wait=True)
    except BrokenProcessPool as error:
        at_work = [slide.name for slide in slides if slide.lock(how[1] / "parts").exists()]
        raise UserError(
            f"a process ended while it cut {' or '.join(at_work) or 'slides'}: killed for lack of memory (give fewer "
            "--workers), or by a file that crashes its reader (leave it out); the same command continues"
        ) from error
    finally:
        for future in futures:
            future.cancel()


def _task(
    slide: Listed, config: TilingConfig, out: Path, manifest_only: bool, tissue: str | None, wait: bool
) -> int | str | None:
    """Cut a slide in a worker; return the number of tiles, or the reason of its failure, which is also in failed.csv.

    None, unless told to `wait`: another process is cutting it.
    """
    quarantine = Quarantine(out / FAILED)
    with claimed(slide.lock(out / "parts"), wait) as mine:
        if not mine:
            return None
        if notes := notes_of(out, slide):  # another process has been faster
            return notes["facts"]["tiles"]
        try:
            tiles = cut(slide, config, out, manifest_only, None if tissue is None else load(tissue))
        except TileError as error:
            quarantine.add(slide.name, slide.path, str(error))
            return str(error)
        quarantine.remove({slide.name})
        return tiles


@contextmanager
def _executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    if scheduler is None:
        context, others = multiprocessing.get_context(start_method()), set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(workers, context, initializer=start_worker)
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # their half-written shards are removed by the next call
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return
    from distributed import Client

    try:
        client: Any = Client(scheduler, timeout=WAIT_S)
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
    with client, client.get_executor(retries=RETRIES, pure=False) as executor:
        yield executor


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    path = out / SETTINGS
    settings = {"version": 4} | settings
    stored = read_json(path) if path.is_file() else None
    if isinstance(stored, dict) and "version" in stored:
        changed = changes(stored, settings)
        if not changed:
            return
        if any(part.is_file() for part in (out / "parts").rglob("*")):  # a slide is cut, or being cut
            raise UserError(f"{out} holds tiles of other settings ({changed}): choose another OUT")
    elif there := [name for name in MADE if (out / name).exists()] + [page.name for page in out.glob("index-*.html")]:
        raise UserError(f"{out / there[0]} is there and not by `colocate tile`: choose another OUT")
    write_atomically(path, json.dumps(settings, indent=2) + "\n")


def _conclude(
    slides: Sequence[Listed], out: Path, before: Mapping[str, dict[str, Any]], misnamed: Mapping[str, str]
) -> Tiled:
    """Write the manifest if no slide is missing.

    before: notes of slides known to be done; misnamed: why others have no files at all.
    """
    notes = {slide.name: known for slide in slides if (known := before.get(slide.name) or notes_of(out, slide))}
    done, others = ([slide for slide in slides if (slide.name in notes) == there] for there in (True, False))
    quarantine = Quarantine(out / FAILED)
    left_out = quarantine.failed.keys() | misnamed.keys()
    quarantine.remove(left_out - {slide.name for slide in others})
    failed = sum(slide.name in left_out for slide in others)
    if failed < len(others):
        return Tiled(0, len(others) - failed, failed)
    if not done:
        raise UserError(f"none of {counted(len(slides), 'slide')} could be cut: {out / FAILED} says why")
    rows = write_manifest(out, done, notes)
    counts = [row["tiles"] for row in rows]
    enlarged = sum(row["enlarged"] for row in rows)
    return Tiled(sum(counts), 0, failed, counts.count(0), enlarged)


def cut_for_training(data: Path, out: Path, config: TilingConfig, mpp: float | None) -> Path:
    """Write a manifest of slides, without shards, into `out` and return its path. Raises what `tile` raises."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{data} holds slides: with several devices, cut them first (colocate tile), and give the result"
        )
    done = tile(find_slides([data], mpp), out, config, manifest_only=True)
    Terminal().say(sentence(done, out))
    return out / MANIFEST
