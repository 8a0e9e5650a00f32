"""Tiles in, two views of each out: crop, resize, blur, flip and colour as a handful of batched matrix products.

`view = A_rows X A_cols^T`, its transpose for quarter turns, then one affine map of colour and one clamp. The crop that
made the pixels is the very object that matching reads.

Departures from torchvision's chain of transforms: hue is rotated in YIQ, not HSV; the order of the colour steps is
fixed (brightness, contrast, saturation, hue, grey); colours are clamped once, at the end; the blur ends at the crop's
edge by renormalising, not by reflection; nothing is rounded to 8 bits in between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .colour import affine, colour_matrix, jitter_stain, stain_matrix
from .geometry import Crop, bounding_box, resampling
from .looks import Looks, ViewConfig, draw_looks, plain_looks
from .transfer import sent


class View(NamedTuple):
    """Normalised images and where they lie on their tiles; `crop` stays on the host."""

    images: Float[Tensor, "b 3 s s"]
    crop: Crop


class Batch(NamedTuple):
    """Two views of each of b tiles, the tiles' numbers, and what else the settings ask for."""

    first: View
    second: View
    tiles: Int[Tensor, " b"]
    locals: tuple[View, ...] = ()
    """Smaller views of the same tiles."""
    reference: View | None = None
    """One view of all that the first two show, upright and in the tile's own colours."""
    epoch: int = 0
    """How often these tiles were seen before."""


def render(tiles: UInt8[Tensor, "b 3 H W"], looks: Looks, config: ViewConfig) -> View:
    """The views that `looks` describes, float32 on the tiles' device; tiles may be padded at the bottom and right."""
    shape = (len(tiles), 3, config.size, config.size)
    images = torch.empty(shape, device=tiles.device, memory_format=torch.channels_last)
    # On a CPU a few tiles at a time: what lies between pixels in and pixels out then stays in cache.
    step = 8 if tiles.device.type == "cpu" else len(tiles)
    with torch.autocast(tiles.device.type, enabled=False):
        for start in range(0, len(tiles), step):
            some = slice(start, start + step)
            images[some] = _pixels(tiles[some], looks.select(some), config)
    return View(images, looks.crop)


def _pixels(tiles: UInt8[Tensor, "b 3 H W"], looks: Looks, config: ViewConfig) -> Float[Tensor, "b 3 s s"]:
    device, crop = tiles.device, looks.crop
    height, width = tiles.shape[2:]
    rows = resampling(crop.rows.float(), config.size, height, looks.sigma_px.float(), device) / 255
    cols = resampling(crop.cols.float(), config.size, width, looks.sigma_px.float(), device)
    # The channels lie side by side while the rows are resampled: no copy of a matrix for each of them.
    low = rows @ tiles.transpose(1, 2).flatten(2).float()  # b s (3 W)
    view = (low.view(len(tiles), -1, width) @ cols.mT).unflatten(1, (-1, 3)).transpose(1, 2)  # b 3 s s
    if crop.transpose.any():
        view = torch.where(sent(crop.transpose, device)[:, None, None, None], view.mT, view)
    if config.stain > 0:
        matrix, offset = stain_matrix(looks.stain_scale.float(), looks.stain_shift.float())
        view = jitter_stain(view, sent(matrix, device), sent(offset, device))

    matrix, grey_row = colour_matrix(looks.factors.float(), looks.grey)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    grey = (sent(grey_row, device) * view.mean((2, 3))).sum(1, keepdim=True)
    offset = (grey - sent(mean, device)) / sent(std, device)
    view = affine(view, sent(matrix / std[:, None], device), offset)
    # Normalising comes after the clamp; folded into the map, it moves the clamp's bounds instead.
    for channel, darkest, brightest in zip(view.unbind(1), -mean / std, (1 - mean) / std, strict=True):
        channel.clamp_(float(darkest), float(brightest))
    return view


def sample_views(
    tiles: UInt8[Tensor, "b 3 H W"],
    config: ViewConfig | None = None,
    *,
    seed: int = 0,
    epoch: int = 0,
    index: Int[Tensor, " b"] | None = None,
    sizes: Int[Tensor, "b 2"] | None = None,
    mpp: Float[Tensor, " b"] | None = None,
) -> Batch:
    """Two random views of each tile, with the crops they were cut from; local and reference views by `config`.

    The views are a pure function of (config, seed, epoch, tile number): the same whatever the batch, the worker or
    the machine. `index` numbers the tiles (default 0, 1, ...), `sizes` gives their true height and width where they are
    padded at the bottom and right, `mpp` their resolution in micrometres per pixel.

    >>> tiles = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    >>> batch = sample_views(tiles, ViewConfig(size=32), seed=1)
    >>> batch.first.images.shape
    torch.Size([2, 3, 32, 32])
    """
    config = config or ViewConfig()
    if index is None:
        index = torch.arange(len(tiles))
    if sizes is None:
        sizes = torch.tensor(tiles.shape[2:]).expand(len(tiles), 2)

    def drawn(number: int, config: ViewConfig, size: int) -> View:
        looks = draw_looks(config, sizes, index, seed, epoch, number, mpp=mpp)
        return render(tiles, looks, replace(config, size=size))

    first, second = (drawn(number, config, config.size) for number in (0, 1))
    small = replace(config, area=config.local_area)
    local = tuple(drawn(2 + number, small, config.local_size) for number in range(config.local_views))
    reference = render(tiles, plain_looks(bounding_box(first.crop, second.crop)), config) if config.reference else None
    return Batch(first, second, index, local, reference, epoch)
