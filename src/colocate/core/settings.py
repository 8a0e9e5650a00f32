"""Settings of views, of probes, and of weights from elsewhere. Without torch: options are read before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from colocate.base.errors import UserError

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
    """Smaller views of each tile, in addition to the two whole ones (multi-crop)."""
    local_size: int = 96
    """Height and width of local views, in pixels."""
    local_area: tuple[float, float] = (0.05, 0.2)
    """Smallest and largest crop of a local view, as `area`."""
    reference: bool = False
    """Add a third view, in the tile's own colours, of all that the two whole ones show (ConCL clusters it)."""
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


@dataclass(frozen=True)
class PlainWeights:
    """Architecture and normalisation of weights that no run of colocate wrote."""

    architecture: str | None = None
    """Architecture for a plain weights file, imagenet and random; None: resnet18."""
    mean: tuple[float, float, float] | None = None
    """Mean of the images that a plain weights file was trained on; None: ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of these images; None: ImageNet's."""


@dataclass(frozen=True)
class ProbeConfig:
    """Segmentation by frozen cells, without a decoder."""

    classifier: Literal["linear", "nearest"] = "linear"
    """linear: logistic regression on cells; nearest: the vote of the most similar training cells (cosine)."""
    stride: int = 16
    """Pixels per cell: the stage of this stride is probed (the last but one of most networks)."""
    mpp: float | None = None
    """Micrometres per pixel at which images are seen; they are scored at their own. None: as they are."""
    memory: int = 20_000
    """Largest number of training cells to learn from or search, drawn at random (the same for every backbone)."""
    neighbours: int = 20
    """Number of cells that vote."""
    decay: float = 0.1
    """Weight decay of the logistic regression."""
    statistics: Literal["own", "images"] = "own"
    """Statistics that batch norms use: own (those of the weights) or images (those of training images)."""

    def __post_init__(self) -> None:
        if min(self.stride, self.memory, self.neighbours) < 1 or self.decay < 0:
            raise UserError("stride, memory and neighbours must be 1 or more, decay not negative")
        if self.mpp is not None and not 0 < self.mpp < 100:
            raise UserError(f"mpp must lie between 0 and 100 micrometres per pixel, not {self.mpp}")
