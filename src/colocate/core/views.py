"""Tiles in, two views of each out: crop, resize, blur, flip and colour as a handful of batched matrix products.

`view = A_rows X A_cols^T`, its transpose for quarter turns, then one affine map of colour and one clamp. The crop that
made the pixels is the very object that matching reads.

Departures from torchvision's chain of transforms: hue is rotated in YIQ, not HSV; the order of the colour steps is
fixed (brightness, contrast, saturation, hue, grey); colours are clamped once, at the end; the blur ends at the crop's
edge by renormalising, not by reflection; nothing is rounded to 8 bits in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from colocate.base.distributed import to_device
from colocate.base.errors import UserError
from colocate.base.rng import uniforms
from colocate.core.geometry import Crop, bounding_box, resampling
from colocate.core.settings import Symmetries, ViewConfig


class AugmentParams(NamedTuple):
    """Everything that decides b views of b tiles, drawn on the host."""

    crop: Crop
    sigma_px: Float[Tensor, " b"]
    factors: Float[Tensor, "b 4"]
    grey: Bool[Tensor, " b"]
    stain_scale: Float[Tensor, "b 3"]
    stain_shift: Float[Tensor, "b 3"]

    def select(self, item: slice | Tensor) -> AugmentParams:
        """Those of some of the views, as `Crop.select`."""
        crop, *rest = self
        return AugmentParams(crop.select(item), *(values[item] for values in rest))


def identity_params(crop: Crop) -> AugmentParams:
    """Views of these crops as they are: no blur, no change of colour."""
    b = len(crop.transpose)
    ones, zeros = crop.rows.new_ones(b, 3), crop.rows.new_zeros(b, 3)
    unchanged = torch.cat([ones, zeros[:, :1]], 1)
    return AugmentParams(crop, zeros[:, 0], unchanged, torch.zeros_like(crop.transpose), ones, zeros)


def sample_params(
    config: ViewConfig,
    sizes: Int[Tensor, "b 2"],
    index: Int[Tensor, " b"],
    *key: int,
    mpp: Float[Tensor, " b"] | None = None,
) -> AugmentParams:
    """Draw one view of each of b tiles of (height, width) `sizes` pixels, a pure function of (config, key, index).

    Raises:
        UserError: `config.mpp` is set and a tile's own `mpp` is unknown (nan, not given or not above 0).
    """
    u = uniforms(index, *key, count=64)
    low, high = 1 - _numbers(config.jitter), 1 + _numbers(config.jitter)
    low[3], high[3] = -config.jitter[3], config.jitter[3]
    unchanged = _numbers([1, 1, 1, 0]).to(u)
    low[:3].clamp_min_(0)
    jittered = (u[:, 0] < config.jitter_p)[:, None]
    factors = torch.where(jittered, low + (high - low) * u[:, 1:5], unchanged)
    blurred = u[:, 6] < config.blur_p
    sigma_px = config.blur_px[0] + (config.blur_px[1] - config.blur_px[0]) * u[:, 7]
    stained = (u[:, 8] < config.stain_p)[:, None].float() * config.stain
    return AugmentParams(
        crop=_draw_crop(config, sizes, u[:, 32:], mpp),
        sigma_px=sigma_px * blurred,
        factors=factors,
        grey=u[:, 5] < config.grey_p,
        stain_scale=1 + stained * (2 * u[:, 9:12] - 1),
        stain_shift=stained * (2 * u[:, 12:15] - 1),
    )


def _draw_crop(
    config: ViewConfig, sizes: Int[Tensor, "b 2"], u: Float[Tensor, "b 32"], mpp: Float[Tensor, " b"] | None
) -> Crop:
    """The first of ten tries (area and log ratio uniform) that fits its tile, else the largest that does; whole pixels.

    This is torchvision's RandomResizedCrop, all tiles at once.
    """
    size = sizes.to(u.dtype)
    height, width = size[:, :1], size[:, 1:]
    full = height * width
    if config.mpp is not None:
        if mpp is None or not (mpp > 0).all():
            raise UserError(f"views.mpp={config.mpp} needs every tile's own mpp: give --tile-mpp, or a table with mpp")
        full = (config.size * config.mpp / mpp.to(u.dtype)[:, None]) ** 2
    area = full * (config.area[0] + (config.area[1] - config.area[0]) * u[:, :10])
    log_low, log_high = math.log(config.ratio[0]), math.log(config.ratio[1])
    ratio = (log_low + (log_high - log_low) * u[:, 10:20]).exp()
    wide, high = (area * ratio).sqrt().round().clamp_min(1), (area / ratio).sqrt().round().clamp_min(1)
    fits = (wide <= width) & (high <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    whole_high = torch.minimum(height, (width / config.ratio[0]).round().clamp_min(1))
    whole_wide = torch.minimum(width, (height * config.ratio[1]).round().clamp_min(1))
    found = fits.any(1, keepdim=True)
    high = torch.where(found, high.gather(1, first), whole_high)
    wide = torch.where(found, wide.gather(1, first), whole_wide)

    top = (u[:, 20:21] * (height - high + 1)).floor()
    left = (u[:, 21:22] * (width - wide + 1)).floor()
    rows, cols = torch.cat([top, top + high], 1), torch.cat([left, left + wide], 1)
    flips = u[:, 22:25] < 0.5
    sideways, upside, turned = (flips & torch.tensor(_ALLOWED[config.symmetries], device=u.device)).unbind(1)
    rows = torch.where(upside[:, None], rows.flip(1), rows)
    cols = torch.where(sideways[:, None], cols.flip(1), cols)
    return Crop(rows, cols, turned)


# Which of a horizontal flip, a vertical flip and a transposition may be drawn; all three make the eight symmetries.
_ALLOWED: dict[Symmetries, tuple[bool, bool, bool]] = {
    "none": (False, False, False),
    "horizontal": (True, False, False),
    "flips": (True, True, False),
    "all": (True, True, True),
}


def _numbers(values: Sequence[object]) -> Tensor:
    """In float32 on the host, whatever torch's defaults: Lightning changes the type for a step in other precisions."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


# ITU-R BT.601 luma, and the YIQ axes whose rotation stands for a change of hue.
LUMA = _numbers([0.299, 0.587, 0.114])
_YIQ = _numbers([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])

# Optical density of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), rows of unit length.
_HED = torch.nn.functional.normalize(_numbers([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)


def colour_matrix(
    factors: Float[Tensor, "b 4"], grey: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """The matrix of a colour jitter, and the row that makes its offset out of the view's mean colour.

    `factors` are brightness, contrast, saturation (1 = unchanged) and hue (turns, 0 = unchanged), applied in that
    order, then `grey`. Contrast blends with the mean luma of the (brightened) view, so colour c becomes
    `matrix @ c + offset . mean` in every channel: the steps after it leave greys alone.
    """
    brightness, contrast, saturation, hue = factors.unbind(1)
    identity = factors.new_ones(3).diag()
    luma = LUMA.to(factors).expand(3, 3)
    saturate = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma
    matrix = _rotate_hue(hue) @ saturate
    matrix = torch.where(grey[:, None, None], luma, matrix) * (brightness * contrast)[:, None, None]
    return matrix, (brightness * (1 - contrast))[:, None] * LUMA.to(factors)


def _rotate_hue(turns: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    yiq = _YIQ.to(turns)
    angle = 2 * math.pi * turns
    rotation = turns.new_zeros(len(turns), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = angle.sin(), -angle.sin()  # red towards yellow, as in HSV
    return torch.linalg.inv(yiq) @ rotation @ yiq


def stain_matrix(
    scale: Float[Tensor, "b 3"], shift: Float[Tensor, "b 3"]
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """Matrix and offset, in optical density, that scale and shift each of haematoxylin, eosin and DAB.

    Tellez et al., "Whole-slide mitosis detection in H&E breast histology", IEEE TMI 2018.
    """
    hed = _HED.to(scale)
    return hed.T @ (scale[:, :, None] * torch.linalg.inv(hed.T)), shift @ hed


def jitter_stain(
    view: Float[Tensor, "b 3 s t"], matrix: Float[Tensor, "b 3 3"], offset: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 s t"]:
    """Apply a `stain_matrix` to intensities in [0, 1]; black counts as 1/255, so blank and dark tiles are safe."""
    density = -view.clamp_min(1 / 255).log()
    return (-affine(density, matrix, offset)).exp()


def affine(
    view: Float[Tensor, "b 3 s t"], matrix: Float[Tensor, "b 3 3"], offset: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 3 s t"]:
    """Matrix times colour plus offset, at every pixel."""
    return torch.baddbmm(offset[:, :, None], matrix, view.flatten(2)).view_as(view)


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


def render(tiles: UInt8[Tensor, "b 3 H W"], params: AugmentParams, config: ViewConfig) -> View:
    """The views that `params` describes, float32 on the tiles' device; tiles may be padded at the bottom and right."""
    shape = (len(tiles), 3, config.size, config.size)
    images = torch.empty(shape, dtype=torch.float32, device=tiles.device, memory_format=torch.channels_last)
    # On a CPU a few tiles at a time: what lies between pixels in and pixels out then stays in cache.
    step = 8 if tiles.device.type == "cpu" else max(len(tiles), 1)
    with torch.autocast(tiles.device.type, enabled=False):
        for start in range(0, len(tiles), step):
            some = slice(start, start + step)
            images[some] = _pixels(tiles[some], params.select(some), config)
    return View(images, params.crop)


def _pixels(tiles: UInt8[Tensor, "b 3 H W"], params: AugmentParams, config: ViewConfig) -> Float[Tensor, "b 3 s s"]:
    device, crop = tiles.device, params.crop
    height, width = tiles.shape[2:]
    rows = resampling(crop.rows.float(), config.size, height, params.sigma_px.float(), device) / 255
    cols = resampling(crop.cols.float(), config.size, width, params.sigma_px.float(), device)
    # The channels lie side by side while the rows are resampled: no copy of a matrix for each of them.
    low = rows @ tiles.transpose(1, 2).flatten(2).float()  # b s (3 W)
    view = (low.view(len(tiles), -1, width) @ cols.mT).unflatten(1, (-1, 3)).transpose(1, 2)  # b 3 s s
    if crop.transpose.any():
        view = torch.where(to_device(crop.transpose, device)[:, None, None, None], view.mT, view)
    if config.stain > 0:
        matrix, offset = stain_matrix(params.stain_scale.float(), params.stain_shift.float())
        view = jitter_stain(view, to_device(matrix, device), to_device(offset, device))

    matrix, grey_row = colour_matrix(params.factors.float(), params.grey)
    mean, std = _numbers(config.mean), _numbers(config.std)
    grey = (to_device(grey_row, device) * view.mean((2, 3))).sum(1, keepdim=True)
    offset = (grey - to_device(mean, device)) / to_device(std, device)
    view = affine(view, to_device(matrix / std[:, None], device), offset)
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
    the machine (pixels but for rounding). `index` numbers the tiles (default 0, 1, ...), `sizes` gives their true
    height and width where they are padded at the bottom and right, `mpp` their resolution in micrometres per pixel.

    >>> tiles = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    >>> batch = sample_views(tiles, ViewConfig(size=32), seed=1)
    >>> batch.first.images.shape
    torch.Size([2, 3, 32, 32])

    Raises:
        TypeError: tiles of another type than uint8.
        ValueError: tiles without three channels, `sizes` that no tile in `tiles` can have, or not one of `index`,
            `sizes` and `mpp` for each.
        UserError: as `sample_params`.
    """
    if tiles.dtype != torch.uint8:
        raise TypeError(f"tiles are {tiles.dtype}, not torch.uint8: give pixels of 0 to 255, not normalised")
    if tiles.ndim != 4 or tiles.shape[1] != 3:
        raise ValueError(f"tiles {tuple(tiles.shape)} are not b x 3 x height x width")
    config = config or ViewConfig()
    b, frame = len(tiles), torch.tensor(tiles.shape[2:], device="cpu")
    index = torch.arange(b, device="cpu") if index is None else index
    sizes = frame.expand(b, 2) if sizes is None else sizes.cpu()
    mpp = None if mpp is None else mpp.cpu()
    for name, given, wanted in (("index", index, (b,)), ("sizes", sizes, (b, 2)), ("mpp", mpp, (b,))):
        if given is not None and given.shape != wanted:
            raise ValueError(f"{name} {tuple(given.shape)} does not fit {b} tiles: give {wanted}")
    if (sizes < 1).any() or (sizes > frame).any():
        raise ValueError(f"sizes are each tile's height and width, from 1 to {' x '.join(map(str, tiles.shape[2:]))}")

    def drawn(number: int, config: ViewConfig, size: int) -> View:
        params = sample_params(config, sizes, index, seed, epoch, number, mpp=mpp)
        return render(tiles, params, replace(config, size=size))

    first, second = (drawn(number, config, config.size) for number in (0, 1))
    small = replace(config, area=config.local_area)
    local = tuple(drawn(2 + number, small, config.local_size) for number in range(config.local_views))
    reference = (
        render(tiles, identity_params(bounding_box(first.crop, second.crop)), config) if config.reference else None
    )
    return Batch(first, second, index, local, reference, epoch)
