"""How views are to look: the settings, and everything about b views that is drawn at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .draws import uniforms
from .errors import UserError
from .geometry import Crop

Symmetries = Literal["none", "horizontal", "flips", "all"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViewConfig:
    """How views are drawn. The defaults are the paper's (MoCo-v2's with crops of 20-100 % area)."""

    size: int = 224
    """Height and width of a view, in pixels."""
    area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest crop, as a fraction of the tile's area (with `mpp`: of a view's area at that mpp)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width-to-height ratio of a crop."""
    symmetries: Symmetries = "horizontal"
    """none; horizontal (flips, as the paper); flips (both ways); all (flips and quarter turns: tissue has no up)."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation and hue (in turns) jitter."""
    jitter_p: float = 0.8
    """Probability of colour jitter."""
    grey_p: float = 0.2
    """Probability of turning the view grey."""
    blur_px: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest sigma of the Gaussian blur, in view pixels."""
    blur_p: float = 0.5
    """Probability of blur."""
    stain: float = 0.0
    """Strength of stain jitter: haematoxylin, eosin and DAB scaled by 1 +- this, shifted by +- this in optical
    density (Tellez et al. 2018); 0 = none."""
    stain_p: float = 0.5
    """Probability of stain jitter, where it is on."""
    mpp: float | None = None
    """Draw crops at one physical scale: a view of full `area` shows `size` pixels at this many micrometres each,
    whatever the tile's own resolution. None: crops are fractions of the tile."""
    local_views: int = 0
    """Smaller views of each tile beside the two whole ones (multi-crop)."""
    local_size: int = 96
    """Height and width of local views, in pixels."""
    local_area: tuple[float, float] = (0.05, 0.2)
    """Smallest and largest crop of a local view, as `area`."""
    reference: bool = False
    """A third view, in the tile's own colours, of all that the two whole ones show (ConCL clusters it)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Channel means subtracted from views (RGB in 0-1)."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Channel standard deviations views are divided by."""

    def __post_init__(self) -> None:
        for name in ("area", "local_area", "ratio", "blur_px"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"views.{name} must be two positive numbers, the smaller first, not {low} {high}")
        for name in ("jitter_p", "grey_p", "blur_p", "stain_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"views.{name} is a probability between 0 and 1, not {getattr(self, name)}")
        if not all(strength >= 0 for strength in self.jitter) or self.jitter[3] > 0.5:
            raise UserError(f"views.jitter must be four numbers from 0, the last at most 0.5, not {self.jitter}")
        if not all(0 <= mean <= 1 for mean in self.mean) or not all(std > 0 for std in self.std):
            raise UserError(f"views: mean must lie in [0, 1] and std be positive, not {self.mean} and {self.std}")
        if min(self.size, self.local_size) < 1 or max(self.area[1], self.local_area[1]) > 1 or not 0 <= self.stain < 1:
            raise UserError("views: sizes must be positive, areas at most 1, stain in [0, 1)")
        if self.local_views < 0:
            raise UserError(f"views.local_views must be 0 or more, not {self.local_views}")
        if self.mpp is not None and not 0 < self.mpp < 100:
            raise UserError(f"views.mpp must lie between 0 and 100 micrometres per pixel, not {self.mpp}")


class Looks(NamedTuple):
    """Everything that decides b views of b tiles, drawn on the host."""

    crop: Crop
    sigma_px: Float[Tensor, " b"]
    factors: Float[Tensor, "b 4"]
    grey: Bool[Tensor, " b"]
    stain_scale: Float[Tensor, "b 3"]
    stain_shift: Float[Tensor, "b 3"]

    def select(self, item: slice | Tensor) -> Looks:
        """Those of some of the views, as `Crop.select`."""
        crop, *rest = self
        return Looks(crop.select(item), *(values[item] for values in rest))


def plain_looks(crop: Crop) -> Looks:
    """Views of these crops as they are: no blur, no change of colour."""
    b = len(crop.transpose)
    ones, zeros = crop.rows.new_ones(b, 3), crop.rows.new_zeros(b, 3)
    unchanged = torch.cat([ones, zeros[:, :1]], 1)
    return Looks(crop, zeros[:, 0], unchanged, torch.zeros(b, dtype=torch.bool), ones, zeros)


def draw_looks(
    config: ViewConfig,
    sizes: Int[Tensor, "b 2"],
    index: Int[Tensor, " b"],
    *key: int,
    mpp: Float[Tensor, " b"] | None = None,
) -> Looks:
    """Draw one view of each of b tiles of (height, width) `sizes` pixels, a pure function of (config, key, index).

    Raises:
        UserError: `config.mpp` is set and a tile's own `mpp` is unknown (nan or not given).
    """
    u = uniforms(index, *key, count=64)
    low, high = 1 - torch.tensor(config.jitter), 1 + torch.tensor(config.jitter)
    low[3], high[3] = -config.jitter[3], config.jitter[3]
    unchanged = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=u.dtype)
    low = low.clamp_min(0).where(torch.tensor([True, True, True, False]), low)
    jittered = (u[:, 0] < config.jitter_p)[:, None]
    factors = torch.where(jittered, low + (high - low) * u[:, 1:5], unchanged)
    blurred = u[:, 6] < config.blur_p
    sigma_px = config.blur_px[0] + (config.blur_px[1] - config.blur_px[0]) * u[:, 7]
    stained = (u[:, 8] < config.stain_p)[:, None] * config.stain
    return Looks(
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
        if mpp is None or mpp.isnan().any():
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
    sideways, upside, turned = (flips & torch.tensor(_ALLOWED[config.symmetries])).unbind(1)
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
