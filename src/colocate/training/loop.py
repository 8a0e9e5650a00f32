"""The training loop. It knows `Method` and nothing of any method; one optimiser step stands whole in `train`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from colocate.base.distributed import any_process, first_of_all, from_all
from colocate.base.errors import Interrupted, UserError
from colocate.base.files import alone, write_atomically
from colocate.base.processes import first_defaults, keep_freed_memory
from colocate.base.rng import seed_torch
from colocate.core.views import Batch, sample_views
from colocate.data.index import Index
from colocate.data.loader import Tiles, batch_indices, tile_loader, tile_order
from colocate.methods.method import Losses, Method
from colocate.models.backbones import Backbone, load_backbone, names_run
from colocate.models.encoder import Encoder, synchronise_batch_norm
from colocate.training import checkpoint, diagnostics
from colocate.training.checkpoint import backbone_facts, write_backbone
from colocate.training.diagnostics import OnlineProbe
from colocate.training.journal import (
    Journal,
    ProgressBar,
    Throughput,
    UnreadableTiles,
    check_terms,
    check_trackers,
    trackers,
    without_default,
)
from colocate.training.optim import build_optimizer, learning_rate, peak_lr
from colocate.training.recipe import Recipe, placed, to_json
from colocate.training.run import (
    launch,
    nothing_left_if_refused,
    planned_steps,
    prepare_folder,
    restore,
    resume_command,
    state,
    stop_signals,
    workers,
)


def compile_encoders(
    module: nn.Module, images: Float[Tensor, "b 3 s s"], autocast: AbstractContextManager[object]
) -> str | None:
    """Compile every encoder in `module`, in place; returns why not, where that cannot be done.

    Tried forward and backward on copies and on `images`, shaped as training will give them: buffers, gradients and the
    names of weights stay what they were. The second time torch takes the code from its cache on disk.
    """
    encoders = [part for part in module.modules() if isinstance(part, Encoder)]
    try:
        with autocast:
            for encoder in map(copy.deepcopy, encoders):
                encoder.compile(dynamic=False)
                features = encoder(images)
                if features.whole.requires_grad:
                    (features.whole.mean() + features.field.mean()).backward()
    except Exception as error:  # whatever a compiler, or its absence, raises
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    for encoder in encoders:
        encoder.compile(dynamic=False)  # other view sizes are compiled when they come
    return None


def prefetch_views(
    batches: Iterator[tuple[int, Tiles]], views: Callable[[int, Tiles, Tensor], Batch], device: torch.device
) -> Iterator[tuple[int, Tiles, Batch]]:
    """Each numbered batch of tiles with its `views`, made from the number, the tiles and their images on the device.

    On a GPU the copy and the views of a batch go through a stream of their own, asked for as soon as the step on the
    batch before has been: the GPU does them beside it, and the host waits for loader processes while the GPU works.
    The numbers are the same, for views depend on nothing that the step changes.
    """
    if device.type != "cuda":
        for turn, tiles in batches:
            yield turn, tiles, views(turn, tiles, tiles.images.to(device))
        return
    beside = torch.cuda.Stream(device)

    def prepared() -> tuple[int, Tiles, Batch, Any] | None:
        upcoming = next(batches, None)
        if upcoming is None:
            return None
        with torch.cuda.stream(beside):
            batch = views(*upcoming, upcoming[1].images.to(device, non_blocking=True))
        return *upcoming, batch, beside.record_event()

    waiting = prepared()
    while waiting is not None:
        turn, tiles, batch, ready = waiting
        main = torch.cuda.current_stream(device)
        main.wait_event(ready)
        for view in (batch.first, batch.second, *batch.locals, *([batch.reference] if batch.reference else [])):
            view.images.record_stream(main)  # its memory is not given away before the step is done with it
        yield turn, tiles, batch
        waiting = prepared()


def pretrain(recipe: Recipe, resume: bool = False) -> Path:
    """Run a recipe, or go on with it; returns the run folder, which then holds the exported backbone.

    Everything random in step t is a function of (seed, t), so a run that is stopped anywhere and resumed computes the
    same numbers, bit for bit, as one that is not.

    Raises:
        UserError: what the user can mend, in a sentence.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint has been written.
    """
    if not recipe.data or not recipe.out:
        raise UserError("a run needs `data`, the tiles or slides, and `out`, the folder to be written")
    recipe, run = placed(recipe), Path(recipe.out).expanduser()
    check_trackers(recipe.machine.journals)
    with ExitStack() as held:
        held.enter_context(first_defaults())
        fabric = launch(recipe.machine, recipe.precision, recipe.batch)
        if fabric.device.type == "cpu":
            keep_freed_memory()
        if fabric.global_rank == 0:
            held.enter_context(alone(run))
            held.enter_context(nothing_left_if_refused(run))
            prepare_folder(run, recipe, resume)
        fabric.barrier()
        train(run, recipe, resume, fabric)
        fabric.barrier()
    return run


def train(run: Path, recipe: Recipe, resume: bool, fabric: Fabric) -> None:
    """The steps of a run whose folder is prepared. Raises what `pretrain` raises."""
    rank, world = fabric.global_rank, fabric.world_size
    index = Index.open(run / "tiles.arrow")

    known = resume and checkpoint.checkpoints(run / "checkpoints")  # and with it all weights
    first = replace(recipe, encoder=replace(recipe.encoder, init="random")) if known else recipe
    method, optimizer = fabric.setup(bare := build_method(first), build_optimizer(recipe.optim, bare))
    step = restore(run, recipe, index, fabric, bare, optimizer) if resume else 0
    batches_per_epoch = max(1, len(index) // recipe.batch)
    steps = planned_steps(recipe, len(index))
    warmup_steps = recipe.optim.warmup_epochs * batches_per_epoch / recipe.accumulate
    peak = peak_lr(recipe.optim, recipe.batch * recipe.accumulate)
    order: dict[str, Any] = {"batch": recipe.batch, "seed": recipe.seed, "rank": rank, "world": world}
    order["order"] = tile_order(index, recipe.balance)
    start, stop = step * recipe.accumulate, steps * recipe.accumulate
    processes = workers(recipe.machine)
    pinned = fabric.device.type == "cuda"
    batches = tile_loader(index, **order, start=start, stop=stop, workers=processes, pin_memory=pinned)

    journal = Journal(run / "journal.csv", step) if rank == 0 else None
    elsewhere = trackers(recipe.machine.journals if rank == 0 else (), run, asdict(recipe))
    watch = None
    if rank == 0 and recipe.probe:
        watch = OnlineProbe(run, recipe.probe, step, recipe.views.mean, recipe.views.std)
        watch.check(bare.backbone)
    probe_every = max(1, round(recipe.probe_every * batches_per_epoch / recipe.accumulate))
    if rank == 0 and resume:  # with what may be another: the machine, the probe, the licence
        write_atomically(run / "recipe.json", to_json(recipe))
    skipped = UnreadableTiles(run, index, recipe.max_skipped, writes=rank == 0)
    unreadable: list[tuple[int, str]] = []  # since all processes told each other
    first_bad = torch.full((), -1, device=fabric.device)  # stays there: looking at it every step would wait for it
    pace = Throughput()
    turns = zip(range(start, stop), pace.timed(batches), strict=True)
    make = partial(views_of, recipe, batches_per_epoch, rank)
    with elsewhere as logged, stop_signals() as asked, ProgressBar(steps, step, shown=rank == 0) as screen:
        screen.warn_once(without_default(recipe.machine.journals))
        if recipe.compile:
            screen.warn_once(_compile(bare, recipe, fabric))
        for turn, tiles, batch in prefetch_views(turns, make, fabric.device):
            step, part = divmod(turn, recipe.accumulate)
            if part == 0:
                seed_torch(rank, recipe.seed, step)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(peak, step, steps, warmup_steps)
            unreadable += tiles.skipped
            if world == 1:
                screen.warn_once(skipped.note(unreadable))
            screen.warn_once(_enlarged(tiles, recipe))
            last = part == recipe.accumulate - 1
            with fabric.no_backward_sync(method, enabled=not last):
                losses: Losses = method(batch)
                if turn == start:
                    check_terms(losses.terms)
                loss = losses.total()
                fabric.backward(loss / recipe.accumulate)
            first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), turn, first_bad)
            pace.count += recipe.batch
            if not last:
                continue
            norm = clip(method, optimizer, recipe.optim.clip, fabric)
            if recipe.precision != "16-mixed":  # whose scale is sought by gradients that are not finite
                first_bad = torch.where((first_bad < 0) & ~norm.isfinite(), turn, first_bad)
            optimizer.step()
            optimizer.zero_grad()
            step += 1

            logs = step % recipe.machine.log_every == 0 or step == steps
            stops = any_process(bool(asked), fabric.device) if logs or world == 1 else False
            saves = stops or step % recipe.machine.save_every == 0 or step == steps
            asks = bool(recipe.probe) and (step % probe_every == 0 or step == steps)
            if logs or saves or asks:
                _stop_if_bad(first_bad, run, index, order | {"rank": 0, "world": 1}, fabric)
                screen.warn_once(skipped.note(from_all(unreadable)))
                unreadable.clear()
            if logs:
                row = {"epoch": (turn + 1) / batches_per_epoch, "lr": optimizer.param_groups[0]["lr"]}
                row |= _mean_over_processes(_row(losses, batch, norm), fabric) | pace.read()
                screen.show(step, row)
                screen.warn_once(diagnostics.warning(row, len(batch.tiles)))
                if journal is not None:
                    journal.write(step, row)
                for log in logged:
                    log(row, step)
            if watch is not None and asks:  # a run that goes on from the checkpoint asks later
                facts = backbone_facts(recipe, step, index)
                screen.say(watch.look(step, (turn + 1) / batches_per_epoch, bare.backbone, facts))
            if saves and rank == 0:
                # First: a run that ends between the two goes on from the checkpoint before, and writes both again.
                write_backbone(run, bare.backbone, backbone_facts(recipe, step, index))
                saved = state(step, recipe, index, fabric, bare, optimizer)
                checkpoint.save_checkpoint(run / "checkpoints", step, saved, recipe.machine.keep)
            if stops:
                raise Interrupted(f"stopped at step {step} of {steps}; go on with: {resume_command(run)}")


def build_method(recipe: Recipe) -> Method:
    """The recipe's method with its first weights: a function of the recipe alone."""
    method = recipe.method.build(build_backbone(recipe), recipe.accumulate)
    if recipe.encoder.sync_norm:
        synchronise_batch_norm(method)
    return method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_backbone(recipe: Recipe) -> Backbone:
    """The recipe's backbone with its first weights."""
    torch.manual_seed(recipe.seed)
    config = recipe.encoder
    backbone = Backbone(config.backbone, config.output_stride, config.drop_path, config.cell_stride)
    backbone.check(recipe.views.size, "views.size")
    if recipe.views.local_views:
        backbone.check(recipe.views.local_size, "views.local_size")
    backbone.facts = {"mean": recipe.views.mean, "std": recipe.views.std}
    look: Mapping[str, Any] = {}
    begun = None
    whose = f"the weights {config.init}"
    if config.init == "published":
        look, whose = backbone.published_look, f"the published weights of {backbone.name}"
    elif names_run(config.init):
        begun = load_backbone(config.init)
        look = begun.facts
    for name in ("mean", "std") if look else ():
        ours, theirs = getattr(recipe.views, name), look[name]
        if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 0.005:
            raise UserError(f"{whose} want --views.{name} {' '.join(map(str, theirs))}, not {ours}")
    if begun is None:
        backbone.load(config.init)
    else:
        backbone.fill(begun.net.state_dict(), config.init)
    backbone.freeze(config.freeze_stride, config.freeze_norm)
    return backbone


def views_of(recipe: Recipe, batches_per_epoch: int, rank: int, turn: int, tiles: Tiles, images: Tensor) -> Batch:
    """Views of batch number `turn` of a run; `images` are the tiles' on the device."""
    epoch, within = divmod(turn, batches_per_epoch)
    index = tiles.index
    if recipe.balance != "tiles":  # a tile that comes again in an epoch comes with other views
        index = within * recipe.batch + rank * len(index) + torch.arange(len(index))
    batch = sample_views(
        images, recipe.views, seed=recipe.seed, epoch=epoch, index=index, sizes=tiles.sizes, mpp=tiles.mpp
    )
    return batch._replace(tiles=tiles.index)


def _compile(method: Method, recipe: Recipe, fabric: Fabric) -> str | None:
    """Returns a sentence where it could not be done."""
    shape = (recipe.batch // fabric.world_size, 3, recipe.views.size, recipe.views.size)
    images = torch.zeros(shape, device=fabric.device).contiguous(memory_format=torch.channels_last)
    failure = compile_encoders(method, images, fabric.autocast())
    return failure and f"compiling failed, so networks run as they are ({failure})"


def clip(method: nn.Module, optimizer: Optimizer, most: float | None, fabric: Fabric) -> Tensor:
    """The gradient's norm, after undoing the scaling of 16-mixed; larger gradients than `most` are scaled down."""
    norm = fabric.clip_gradients(method, optimizer, max_norm=most or 1e30, error_if_nonfinite=False)
    assert norm is not None
    return norm


def _row(losses: Losses, batch: Batch, grad_norm: Tensor) -> dict[str, float]:
    terms = {"loss": losses.total(), **losses.terms}
    values = {name: term.item() for name, term in terms.items()}
    return values | {"grad_norm": float(grad_norm)} | diagnostics.measure(losses, batch)


def _mean_over_processes(row: dict[str, float], fabric: Fabric) -> dict[str, float]:
    if fabric.world_size == 1:
        return row
    values = fabric.all_reduce(torch.tensor(list(row.values()), device=fabric.device), reduce_op="mean")
    assert isinstance(values, Tensor)
    return dict(zip(row, values.tolist(), strict=True))


def _enlarged(tiles: Tiles, recipe: Recipe) -> str | None:
    views = recipe.views
    if views.mpp is not None:
        least = views.size * views.mpp * views.area[0] ** 0.5  # micrometres, of the smallest view
        if (tiles.sizes.amin(1) * tiles.mpp < least - views.mpp).any():
            return f"some tiles are too small for views at {views.mpp:g} micrometres per pixel: seen finer, enlarged"
    small = tiles.sizes.amin(0).tolist()
    if min(small) >= views.size:
        return None
    return f"some tiles are smaller ({small[0]} x {small[1]} px) than a view ({views.size} px): enlarged"


def _stop_if_bad(first_bad: Tensor, run: Path, index: Index, order: dict[str, Any], fabric: Fabric) -> None:
    """Say at which step, and on which tiles, a loss or gradient of any process first was not finite."""
    turn = int(first_of_all(first_bad))
    if turn < 0:
        return
    names = [index.name(number) for number in batch_indices(len(index), step=turn, **order)]
    if fabric.is_global_zero:
        write_atomically(run / "nonfinite.txt", "\n".join(names) + "\n")
    good = checkpoint.checkpoints(run / "checkpoints")
    kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint of before"
    again = f", from --init {run}/backbone.safetensors" if good else ""
    raise UserError(
        f"the loss or its gradient was not finite at batch {turn}, whose tiles ({names[0]}, ...) are listed in "
        f"{run}/nonfinite.txt; {kept}: look at the tiles, or start again with a lower --optim.lr, more warm-up or "
        f"precision 32{again}"
    )
