"""Decoders on a backbone: Mask R-CNN (torchvision), and a U-Net (arXiv:1505.04597, segmentation-models-pytorch)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from scipy.ndimage import find_objects
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from colocate.base.errors import UserError
from colocate.base.processes import first_defaults
from colocate.datasets.labelled import Labelled
from colocate.evaluation.fit import flipped
from colocate.evaluation.metrics.objects import Found, Objects
from colocate.evaluation.settings import InstancesConfig, SemanticsConfig
from colocate.models.backbones import Backbone, batch_norms, taking


@final
class Pyramid(nn.Module):
    """Feature pyramid of a backbone: (b, 3, H, W) to one grid a stride, finest first.

    A network of stages gives its own grids. A ViT, which has one, gets the simple feature pyramid of ViTDet
    (arXiv:2203.16527): strides 4, 8, 16 and 32 by transposed convolutions and pooling of the last grid.

    Raises UserError: a stride that is no power of two, which decoders cannot halve their way to; stages that do not end
    with those of strides 4, 8, 16 and 32; when it looks at images, as `taking` does.
    """

    def __init__(self, backbone: Backbone, width: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        self.strides = backbone.strides
        if any(stride & (stride - 1) for stride in self.strides):
            raise UserError(
                f"{backbone.name} has a stride of {self.strides[-1]} px: decoders need a power of two, "
                "such as vit_small_patch16_224's"
            )
        self.simple = None
        if len(self.strides) == 1:
            self.simple = nn.ModuleDict(
                {str(stride): _scaled(backbone.channels, self.strides[0], stride, width) for stride in (4, 8, 16, 32)}
            )
            self.strides = (4, 8, 16, 32)
            self.channels = (width,) * 4
        elif self.strides[-4:] != (4, 8, 16, 32):
            raise UserError(
                f"{backbone.name} has stages of strides {', '.join(map(str, self.strides))}: decoders need those of "
                "4, 8, 16 and 32, such as resnet18's"
            )
        else:
            with torch.no_grad():  # 224 px any backbone takes
                self.channels = tuple(grid.shape[1] for grid in backbone.eval().stages(torch.zeros(1, 3, 224, 224)))
            backbone.train()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        with taking(self.backbone, images):
            grids = self.backbone.stages(images)
        return grids if self.simple is None else [part(grids[-1]) for part in self.simple.values()]


def _scaled(channels: int, stride: int, wanted: int, width: int) -> nn.Sequential:
    """Layers that bring a grid from one stride to another, as in ViTDet."""
    parts: list[nn.Module] = []
    while stride > wanted:
        parts += [nn.ConvTranspose2d(channels, channels // 2, 2, 2), LayerNorm2d(channels // 2, eps=1e-5), nn.GELU()]
        channels, stride = channels // 2, stride // 2
    if stride < wanted:
        parts.append(nn.MaxPool2d(wanted // stride))
    parts += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width, eps=1e-5)]
    parts += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width, eps=1e-5)]
    return nn.Sequential(*parts)


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
        heads: Any = self.net.roi_heads
        nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
        self.norms = batch_norms(backbone)
        heads.select_training_samples = partial(_with_masks, heads.select_training_samples)
        transform: Any = self.net.transform
        transform.postprocess = _to_own_pixels  # its own would paste all masks at once

    def train(self, mode: bool = True) -> Detector:
        """As of any module; images get the sizes of training, and frozen batch norms keep what they have."""
        super().train(mode)
        if mode:
            low, high = self.config.short_side
            self._resize_to(*range(low, high + 1))
        for norm in self.norms if self.config.norm == "frozen" else ():
            norm.eval().requires_grad_(False)
        return self

    def forward(self, images: list[Float[Tensor, "3 _ _"]], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return self.net(images, targets)

    @torch.no_grad()
    def predict(self, image: UInt8[Tensor, "3 h w"]) -> Objects:
        """The objects of an image, most certain first."""
        self.eval()
        self._resize_to(self.config.test_short_side)
        device = next(self.parameters()).device
        found: dict[str, Tensor] = self.net([image.to(device).float() / 255])[0]
        size = (image.shape[1], image.shape[2])
        masks = (_pasted(found, i, size).cpu() for i in range(len(found["boxes"])))
        boxes = found["boxes"].cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        return Objects.of_masks(size, masks, found["labels"].tolist(), found["scores"].tolist(), boxes)

    @first_defaults()
    @torch.no_grad()
    def label(self, windows: UInt8[Tensor, "b 3 s s"], least: float) -> list[Found]:
        """The objects of each window whose score is above `least`; as `label_map` draws them, but seen at the window's
        own size.

        A window holds at most as many objects as the same area of a test image that is square.
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
            detections: list[dict[str, Tensor]] = self.net(list(windows.to(device).float() / 255))
        finally:
            heads.score_thresh, heads.detections_per_img = usual
        found = []
        for one in detections:
            ids = torch.zeros(side, side, dtype=torch.int32, device=device)
            for i in reversed(range(len(one["boxes"]))):  # the most certain is first, and goes on top
                ids[_pasted(one, i, (side, side))] = i + 1
            found.append(Found(ids.cpu(), one["labels"].tolist(), one["scores"].tolist()))
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


def _pasted(found: dict[str, Tensor], i: int, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """The mask of one found object in an image: a hundred at once would be half a gigabyte at 1,024 px."""
    one = slice(i, i + 1)
    box = found["boxes"][one].float().cpu()  # whose sides are read one after the other, each a wait for the GPU
    return paste_masks_in_image(found["masks"][one].float(), box, size)[0, 0] > 0.5


def _to_own_pixels(found: list[dict[str, Tensor]], sizes: Sequence[Any], own: Sequence[Any]) -> list[dict[str, Tensor]]:
    """Bring boxes back to the size that images had; while training nothing is found."""
    return [one | {"boxes": resize_boxes(one["boxes"], a, b)} for one, a, b in zip(found, sizes, own, strict=False)]


def _with_masks(select: Callable[..., Any], proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
    """Choose the proposals to learn from by `select`, and make the masks of the objects that they are of: no others."""
    chosen = _, matched, kinds, _ = select(proposals, targets)
    for target, numbers, kind in zip(targets, matched, kinds, strict=True):
        used, numbers[kind > 0] = numbers[kind > 0].unique(return_inverse=True)
        low, high = target["masks"].int()
        target["masks"] = (low + 256 * high == used[:, None, None] + 1).to(torch.uint8)
        target["labels"] = target["labels"][used]
    return chosen


def instance_target(data: Labelled, number: int, mask: Int32[Tensor, "h w"]) -> dict[str, Tensor]:
    """Training target of Mask R-CNN: boxes (x0, y0, x1, y1; edges, not pixels) and labels of the objects, and `masks`.

    These are the map of the objects' numbers (1, 2, ... in the order of the boxes) as two layers of bytes, the lower
    ones first: torchvision may resize them, and `_with_masks` makes masks of single objects.
    """
    ids, numbers = mask.unique(return_inverse=True)
    numbers = numbers.int() + int(ids[0] > 0)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(numbers.numpy())]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": data.object_classes(number, ids[ids > 0].long()),
        "masks": torch.stack([numbers % 256, numbers // 256]).to(torch.uint8),
    }


OUTSIDE = -1  # pixels that were added around an image smaller than a crop; they count for nothing


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
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.decoder = UnetDecoder((3, *channels), (256, 128, 64, 32, 16), n_blocks=5)
        self.head = SegmentationHead(16, classes, kernel_size=3)
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Segmenter:
        """As of any module; a frozen encoder stays as it is."""
        super().train(mode)
        if self.config.encoder == "frozen":
            self.pyramid.backbone.eval().requires_grad_(False)
        return self

    def forward(self, images: list[Float[Tensor, "3 h w"]], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        classes = torch.stack([class_target["classes"] for class_target in targets])
        if self.ignored is not None:
            classes = classes.masked_fill(classes == self.ignored, OUTSIDE)
        logits = self.logits(torch.stack(images)).float()
        each = F.cross_entropy(logits, classes, ignore_index=OUTSIDE, reduction="sum")
        return {"cross_entropy": each / (classes != OUTSIDE).sum().clamp_min(1)}

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of each class at each pixel; images in [0, 1], of sides that are multiples of 32."""
        grids = self.pyramid((images - self.mean) / self.std)
        if self.pyramid.strides[0] == 4:
            grids = [images.new_zeros(len(images), 0, images.shape[2] // 2, images.shape[3] // 2), *grids]
        return self.head(self.decoder([images, *grids]))

    @torch.no_grad()
    def predict(self, image: UInt8[Tensor, "3 h w"]) -> Int64[Tensor, "h w"]:
        """The class of each pixel; never the ignored one."""
        return self.scores(image[None])[0].argmax(0).cpu()

    @torch.no_grad()
    def scores(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of each class at each pixel of images of any size; minus infinity for the ignored class."""
        self.eval()
        height, width = images.shape[2:]
        margin = (0, -width % 32, 0, -height % 32)
        logits = self.logits(F.pad(images.to(self.mean.device).float() / 255, margin, value=1.0))[..., :height, :width]
        if self.ignored is not None and self.ignored < self.classes:  # it may be a number beside them, such as 255
            logits[:, self.ignored] = -torch.inf
        return logits

    @first_defaults()
    @torch.no_grad()
    def label(self, windows: UInt8[Tensor, "b 3 s s"]) -> tuple[UInt8[Tensor, "b s s"], UInt8[Tensor, "b s s"]]:
        """The class of each pixel of windows, never the ignored one, and its probability in 255ths.

        Classes are fewer than 256.
        """
        probabilities, classes = self.scores(windows).float().softmax(1).max(1)
        return classes.to(torch.uint8).cpu(), (probabilities * 255).round().to(torch.uint8).cpu()


def class_target(data: Labelled, number: int, mask: Int32[Tensor, "h w"]) -> dict[str, Tensor]:
    """Training target of a U-Net: the class of each pixel (0 is background where objects are labelled)."""
    return {"classes": data.pixel_classes(number, mask)}


def cropped(
    image: UInt8[Tensor, "3 h w"], mask: Int32[Tensor, "h w"], draws: Float[Tensor, " k"], side: int, symmetries: bool
) -> tuple[UInt8[Tensor, "3 s s"], Int32[Tensor, "s s"]]:
    """A square anywhere in the image, flipped and turned; smaller images get a white margin that does not count."""
    image, mask = flipped(image, mask, draws, symmetries)
    height, width = mask.shape
    margin = (0, max(0, side - width), 0, max(0, side - height))
    image, mask = F.pad(image, margin, value=255), F.pad(mask, margin, value=OUTSIDE)
    top, left = (int(draw * (length - side + 1)) for draw, length in zip(draws[3:5], mask.shape, strict=True))
    return image[:, top : top + side, left : left + side], mask[top : top + side, left : left + side]
