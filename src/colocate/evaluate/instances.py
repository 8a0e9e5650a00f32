"""Instance segmentation: Mask R-CNN (arXiv:1703.06870) with a feature pyramid on the backbone, by torchvision."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int32, UInt8
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, masks_to_boxes
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..backbones import Backbone
from ..data import Labelled
from ..errors import UserError
from ..probes.nearest import batch_norms
from .examples import Alter, flipped
from .fit import FitConfig
from .metrics.objects import Objects
from .pyramid import Pyramid, freeze_norms


@dataclass(frozen=True)
class InstancesConfig:
    """Mask R-CNN with a feature pyramid, as the paper trains it on GlaS."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=5000, warmup=1000 / 5000))
    short_side: tuple[int, int] = (400, 522)
    """Training images are resized so that the short side is some length in this range, in px."""
    test_short_side: int = 522
    """Short side of test images, in px."""
    long_side: int = 1333
    """Largest long side, in px."""
    symmetries: bool = False
    """All flips and quarter turns of training images; else sideways flips."""
    norm: Literal["tuned", "frozen"] = "tuned"
    """Batch norm of the backbone: trained on whole batches, with more of it in the feature pyramid; or fixed at the
    statistics that came with the weights (of random ones: the training images'), as tiny batches want it."""
    detections: int = 100
    """Most objects found in an image."""
    proposals: int = 512
    """Proposals of an image that the heads learn from."""
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides of the anchors at the five levels of the pyramid, in px."""

    def __post_init__(self) -> None:
        low, high = self.short_side
        if not 0 < low <= high <= self.long_side or not 0 < self.test_short_side <= self.long_side:
            raise UserError("short_side is a range, and with test_short_side at most long_side, in px")
        if len(self.anchors) != 5 or min(self.detections, self.proposals) < 1:
            raise UserError("anchors are five sides, detections and proposals 1 or more")

    @property
    def alter(self) -> Alter:
        """What happens to a training image before the model resizes it."""
        return partial(flipped, symmetries=self.symmetries)


@final
class Detector(nn.Module):
    """Mask R-CNN: (images, targets) to named losses; `predict` gives the objects of one image."""

    def __init__(
        self, config: InstancesConfig, backbone: Backbone, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        sides = tuple((side,) for side in config.anchors)
        self.net = MaskRCNN(
            _Levels(Pyramid(backbone), norm=nn.BatchNorm2d if config.norm == "tuned" else None),
            num_classes=classes + 1,
            min_size=config.test_short_side,
            max_size=config.long_side,
            image_mean=list(mean),
            image_std=list(std),
            rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
            box_detections_per_img=config.detections,
            box_batch_size_per_image=config.proposals,
            rpn_post_nms_top_n_train=1000,  # Detectron2's; torchvision's is 2,000
        )
        # torchvision's start is that of an inner layer: logits of a mask loss of 5. Detectron2's is ln 2.
        logits: Any = self.net.roi_heads.mask_predictor
        nn.init.normal_(logits.mask_fcn_logits.weight, std=0.001)
        self.norms = batch_norms(backbone)

    def ready(self) -> None:
        """Training mode; frozen batch norms stay as they are."""
        self.train()
        low, high = self.config.short_side
        self._resize_to(*range(low, high + 1))
        if self.config.norm == "frozen":
            freeze_norms(self.norms)

    def forward(self, images: list[Float[Tensor, "3 _ _"]], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return self.net(images, targets)

    @torch.no_grad()
    def predict(self, image: UInt8[Tensor, "3 h w"]) -> Objects:
        """The objects of an image, most certain first."""
        self.eval()
        self._resize_to(self.config.test_short_side)
        device = next(self.parameters()).device
        found: dict[str, Tensor] = self.net([image.to(device).float() / 255])[0]
        boxes = found["boxes"].cpu()
        boxes[:, 2:] -= boxes[:, :2]
        masks = (found["masks"][:, 0] > 0.5).cpu()
        return Objects.of_masks(masks, found["labels"].tolist(), found["scores"].tolist(), boxes)

    @torch.no_grad()
    def label(
        self, windows: UInt8[Tensor, "b 3 s s"], least: float
    ) -> list[tuple[Int32[Tensor, "s s"], list[int], list[float]]]:
        """Ids (i + 1 where object i lies), classes and scores of the objects of each window whose score is above
        `least`; as `label_map` draws them, but seen at the window's own size.

        A window holds at most as many objects as the same area of a test image that is square. One mask after the
        other is pasted: a hundred at once would be half a gigabyte a window of 1,024 px.
        """
        self.eval()
        side = windows.shape[-1]
        self._resize_to(side)
        heads: Any = self.net.roi_heads
        usual = heads.score_thresh, heads.detections_per_img
        larger = max(1.0, (side / self.config.test_short_side) ** 2)
        heads.score_thresh, heads.detections_per_img = least, math.ceil(self.config.detections * larger)
        try:
            device = next(self.parameters()).device
            images, _ = self.net.transform(list(windows.to(device).float() / 255))
            grids = self.net.backbone(images.tensors)
            proposals, _ = self.net.rpn(images, grids)
            detections, _ = heads(grids, proposals, images.image_sizes)
        finally:
            heads.score_thresh, heads.detections_per_img = usual
        found = []
        for one in detections:
            ids = torch.zeros(side, side, dtype=torch.int32, device=device)
            masks, boxes = one["masks"].float(), one["boxes"].float()
            for i in reversed(range(len(boxes))):  # the most certain is first, and goes on top
                mask = paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], (side, side))
                ids[mask[0, 0] > 0.5] = i + 1
            found.append((ids.cpu(), one["labels"].tolist(), one["scores"].tolist()))
        return found

    def _resize_to(self, *short_sides: int) -> None:
        """Bring an image's short side to this, or to one of these drawn at random."""
        transform: Any = self.net.transform
        transform.min_size = short_sides
        transform.max_size = max(self.config.long_side, *short_sides)


class _Levels(nn.Module):
    """The grids from stride 4 on, brought to one width, with the level above the last that the proposals want."""

    def __init__(self, pyramid: Pyramid, norm: Callable[..., nn.Module] | None) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.out_channels = 256
        self.first = pyramid.strides.index(4)
        self.fpn = None
        if pyramid.simple is None:
            channels = list(pyramid.channels[self.first :])
            self.fpn = FeaturePyramidNetwork(channels, 256, LastLevelMaxPool(), norm_layer=norm)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> OrderedDict[str, Tensor]:
        named = OrderedDict((str(i), grid) for i, grid in enumerate(self.pyramid(images)[self.first :]))
        if self.fpn is not None:
            return self.fpn(named)
        named["pool"] = nn.functional.max_pool2d(named["3"], 1, 2)
        return named


def target(data: Labelled, number: int, mask: Int32[Tensor, "h w"]) -> dict[str, Tensor]:
    """What Mask R-CNN learns from: boxes (x0, y0, x1, y1; edges, not pixels), labels and masks of the objects."""
    ids = mask.unique()
    ids = ids[ids > 0].long()
    masks: Bool[Tensor, "n h w"] = mask[None] == ids[:, None, None]
    boxes = masks_to_boxes(masks) if len(ids) else torch.zeros(0, 4)
    boxes[:, 2:] += 1  # torchvision gives the last pixel, the COCO library counts to its far edge
    return {"boxes": boxes, "labels": data.object_classes(number, ids), "masks": masks.to(torch.uint8)}
