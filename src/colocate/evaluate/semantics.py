"""Semantic segmentation: a U-Net (arXiv:1505.04597) on the backbone, its decoder by segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64, UInt8
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from ..backbones import Backbone
from ..data import Labelled
from ..errors import UserError
from ..probes.nearest import batch_norms
from .examples import Alter, flipped
from .fit import FitConfig
from .pyramid import Pyramid, freeze_norms

OUTSIDE = -1  # pixels that were added around an image smaller than a crop; they count for nothing


@dataclass(frozen=True)
class SemanticsConfig:
    """A U-Net, as the paper trains it on BCSS: 20 epochs, AdamW, crops of 256 px."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(batch=32, optimizer="adamw", lr=5e-4, weight_decay=0.02, drops=())
    )
    crop: int = 256
    """Side of the training crops, in px."""
    symmetries: bool = True
    """All flips and quarter turns of training crops; else sideways flips."""
    encoder: Literal["tuned", "frozen"] = "tuned"
    """The backbone learns too, or only the decoder does (batch norm then keeps the statistics that came with the
    weights; of random ones: the training images')."""

    def __post_init__(self) -> None:
        if self.crop < 32 or self.crop % 32:
            raise UserError(f"crop is a multiple of 32 px, not {self.crop}")

    @property
    def alter(self) -> Alter:
        """What makes a training crop of an image."""
        return partial(_cropped, side=self.crop, symmetries=self.symmetries)


@final
class Segmenter(nn.Module):
    """U-Net: (images, targets) to a named loss; `predict` gives the class of each pixel of one image."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: SemanticsConfig,
        backbone: Backbone,
        classes: int,
        ignored: int | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.ignored = ignored
        self.pyramid = Pyramid(backbone)
        channels = self.pyramid.channels
        if self.pyramid.strides[0] == 4:
            channels = (0, *channels)  # a network whose first grid has stride 4: no grid at 2
        self.decoder = UnetDecoder((3, *channels), (256, 128, 64, 32, 16), n_blocks=5)
        self.head = SegmentationHead(16, classes, kernel_size=3)
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1), persistent=False)

    def ready(self) -> None:
        """Training mode; a frozen encoder stays as it is."""
        self.train()
        if self.config.encoder == "frozen":
            self.pyramid.backbone.eval().requires_grad_(False)
            freeze_norms(batch_norms(self.pyramid.backbone))

    def forward(self, images: list[Float[Tensor, "3 h w"]], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        classes = torch.stack([target["classes"] for target in targets])
        if self.ignored is not None:
            classes = classes.masked_fill(classes == self.ignored, OUTSIDE)
        logits = self.logits(torch.stack(images)).float()
        each = F.cross_entropy(logits, classes, ignore_index=OUTSIDE, reduction="sum")
        return {"cross_entropy": each / (classes != OUTSIDE).sum().clamp_min(1)}

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """What speaks for each class at each pixel; images in [0, 1], of sides that are multiples of 32."""
        grids = self.pyramid((images - self.mean) / self.std)
        if self.pyramid.strides[0] == 4:
            grids = [images.new_zeros(len(images), 0, images.shape[2] // 2, images.shape[3] // 2), *grids]
        return self.head(self.decoder([images, *grids]))

    @torch.no_grad()
    def predict(self, image: UInt8[Tensor, "3 h w"]) -> Int64[Tensor, "h w"]:
        """The class of each pixel; never the ignored one."""
        self.eval()
        height, width = image.shape[1:]
        margin = (0, -width % 32, 0, -height % 32)
        padded = F.pad(image[None].to(self.mean.device).float() / 255, margin, value=1.0)
        logits = self.logits(padded)[0, :, :height, :width]
        if self.ignored is not None:
            logits[self.ignored] = -torch.inf
        return logits.argmax(0).cpu()

    @torch.no_grad()
    def label(self, windows: UInt8[Tensor, "b 3 s s"]) -> tuple[UInt8[Tensor, "b s s"], UInt8[Tensor, "b s s"]]:
        """The class of each pixel of windows, never the ignored one, and its probability in 255ths.

        Sides are multiples of 32, classes fewer than 256.
        """
        self.eval()
        logits = self.logits(windows.to(self.mean.device).float() / 255).float()
        if self.ignored is not None:
            logits[:, self.ignored] = -torch.inf
        probabilities, classes = logits.softmax(1).max(1)
        return classes.to(torch.uint8).cpu(), (probabilities * 255).round().to(torch.uint8).cpu()


def target(data: Labelled, number: int, mask: Int32[Tensor, "h w"]) -> dict[str, Tensor]:
    """What a U-Net learns from a crop: the class of each pixel (0 is background where objects are labelled)."""
    return {"classes": data.pixel_classes(number, mask)}


def _cropped(
    image: UInt8[Tensor, "3 h w"], mask: Int32[Tensor, "h w"], draws: Float[Tensor, " k"], side: int, symmetries: bool
) -> tuple[UInt8[Tensor, "3 s s"], Int32[Tensor, "s s"]]:
    """A square anywhere in the image, flipped and turned; smaller images get a white margin that does not count."""
    image, mask = flipped(image, mask, draws, symmetries)
    height, width = mask.shape
    margin = (0, max(0, side - width), 0, max(0, side - height))
    image, mask = F.pad(image, margin, value=255), F.pad(mask, margin, value=OUTSIDE)
    top, left = (int(draw * (length - side + 1)) for draw, length in zip(draws[3:5], mask.shape, strict=True))
    return image[:, top : top + side, left : left + side], mask[top : top + side, left : left + side]
