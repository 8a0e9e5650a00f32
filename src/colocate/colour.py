"""Colour changes of a view: one 3 x 4 affine map of RGB, and stain jitter, which is affine in optical density."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# ITU-R BT.601 luma, and the YIQ axes whose rotation stands for a change of hue.
LUMA = torch.tensor([0.299, 0.587, 0.114])
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])

# Optical density of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), rows of unit length.
_HED = torch.nn.functional.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)


def colour_matrix(
    factors: Float[Tensor, "b 4"], grey: Bool[Tensor, " b"]
) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """The matrix of a colour jitter, and the row that makes its offset out of the view's mean colour.

    `factors` are brightness, contrast, saturation (1 = unchanged) and hue (turns, 0 = unchanged), applied in that
    order, then `grey`. Contrast blends with the mean luma of the (brightened) view, so colour c becomes
    `matrix @ c + offset . mean` in every channel: the steps after it leave greys alone.
    """
    brightness, contrast, saturation, hue = factors.unbind(1)
    identity = torch.eye(3, dtype=factors.dtype)
    luma = LUMA.to(factors).expand(3, 3)
    saturate = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma
    matrix = _rotate_hue(hue) @ saturate
    matrix = torch.where(grey[:, None, None], luma, matrix) * (brightness * contrast)[:, None, None]
    return matrix, (brightness * (1 - contrast))[:, None] * LUMA.to(factors)


def _rotate_hue(turns: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    yiq = _YIQ.to(turns)
    angle = 2 * math.pi * turns
    rotation = torch.zeros(len(turns), 3, 3, dtype=turns.dtype)
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
