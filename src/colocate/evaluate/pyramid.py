"""A backbone's grids at several strides, as decoders want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones import Backbone
from ..errors import UserError


@final
class Pyramid(nn.Module):
    """(b, 3, H, W) to one grid a stride, finest first.

    A network of stages gives its own grids. A ViT, which has one, gets the simple feature pyramid of ViTDet
    (arXiv:2203.16527): strides 4, 8, 16 and 32 by transposed convolutions and pooling of the last grid.

    Raises:
        UserError: a stride that is no power of two, which decoders cannot halve their way to.
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
        else:
            with torch.no_grad():
                self.channels = tuple(grid.shape[1] for grid in backbone.eval().stages(torch.zeros(1, 3, 64, 64)))
            backbone.train()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        grids = self.backbone.stages(images)
        return grids if self.simple is None else [part(grids[-1]) for part in self.simple.values()]


def _scaled(channels: int, stride: int, wanted: int, width: int) -> nn.Sequential:
    """ViTDet's path from a grid at one stride to a grid at another."""
    parts: list[nn.Module] = []
    while stride > wanted:
        parts += [nn.ConvTranspose2d(channels, channels // 2, 2, 2), _LayerNorm(channels // 2), nn.GELU()]
        channels, stride = channels // 2, stride // 2
    if stride < wanted:
        parts.append(nn.MaxPool2d(wanted // stride))
    parts += [nn.Conv2d(channels, width, 1, bias=False), _LayerNorm(width)]
    parts += [nn.Conv2d(width, width, 3, padding=1, bias=False), _LayerNorm(width)]
    return nn.Sequential(*parts)


class _LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a grid."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def freeze_norms(norms: Sequence[nn.Module]) -> None:
    """Batch norms keep their statistics and weights; to be called again after every `train()`."""
    for norm in norms:
        norm.eval().requires_grad_(False)
