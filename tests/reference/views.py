"""Views by torchvision: the chain of MoCo-v2, and single views with given parameters.

Source: facebookresearch/moco, main_moco.py, `--aug-plus` (arXiv:2003.04297), read again in PLM's own configuration
(arXiv:2212.12105): crops of 20-100 % area, jitter (.4 .4 .4 .1) with p .8, grey with p .2, blur with p .5, flip.
"""

from __future__ import annotations

import random

import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode

from colocate.core.settings import IMAGENET_MEAN, IMAGENET_STD
from colocate.core.views import AugmentParams


class PillowBlur:
    """MoCo's own blur: Pillow's three box filters, an approximation that is far quicker than a convolution."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def moco_v2_chain(size: int = 224, *, pillow_blur: bool = False) -> T.Compose:
    """A PIL image in, a normalised tensor out; the blur is torchvision's (kernel 23), or Pillow's as MoCo has it."""
    blur = PillowBlur() if pillow_blur else T.GaussianBlur(23, (0.1, 2.0))
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.2, 1.0)),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([blur], p=0.5),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def view_of(tile: Tensor, looks: AugmentParams, view: int, size: int) -> Tensor:
    """One view of one tile (3 x H x W, uint8) in [0, 1], with the given crop, flips, blur and colours, in float64.

    torchvision's own functions, one after another in our order, nothing rounded; each colour step clamps, and the hue
    is HSV's. The blur reflects at the edges.
    """
    (first_row, last_row), (first_col, last_col) = looks.crop.rows[view].tolist(), looks.crop.cols[view].tolist()
    top, bottom = int(min(first_row, last_row)), int(max(first_row, last_row))
    left, right = int(min(first_col, last_col)), int(max(first_col, last_col))
    image = TF.resized_crop(
        tile.double() / 255,
        top,
        left,
        bottom - top,
        right - left,
        [size, size],
        InterpolationMode.BILINEAR,
        antialias=True,
    )
    sigma = float(looks.sigma_px[view])
    if sigma > 0:
        image = TF.gaussian_blur(image, [2 * min(int(4 * sigma + 1), size - 1) + 1] * 2, [sigma] * 2)
    if first_row > last_row:
        image = TF.vflip(image)
    if first_col > last_col:
        image = TF.hflip(image)
    if bool(looks.crop.transpose[view]):
        image = image.transpose(1, 2)
    brightness, contrast, saturation, hue = looks.factors[view].tolist()
    image = TF.adjust_brightness(image, brightness)
    image = TF.adjust_contrast(image, contrast)
    image = TF.adjust_saturation(image, saturation)
    image = TF.adjust_hue(image, hue) if hue else image
    return TF.rgb_to_grayscale(image, 3) if bool(looks.grey[view]) else image


def batch_of(chain: T.Compose, images: list[Image.Image]) -> Tensor:
    """One view of each image, stacked: what a loader's workers and its collation do."""
    return torch.stack([chain(image) for image in images])
