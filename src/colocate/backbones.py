"""Any timm network as a backbone: images in, one grid of feature cells out."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import UserError


@final
class Backbone(nn.Module):
    """A timm network's last feature grid: (b, 3, H, W) to (b, c, H / stride, W / stride).

    `net` keeps timm's own weight names (for ResNets they are torchvision's too). Patch tokens of a ViT are laid out
    as a grid; class and register tokens are left out.

    Raises:
        UserError: timm has no such network, or it gives no feature grid, or not at this stride.
    """

    def __init__(self, name: str = "resnet18", output_stride: int = 32, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.facts: dict[str, Any] = {}  # of an exported backbone: what backbone.json says
        self.output_stride = output_stride
        if not timm.is_model(name):
            close = ", ".join(get_close_matches(name, timm.list_models(), 5))
            raise UserError(f"timm has no network called {name!r}" + (f"; near it: {close}" if close else ""))
        self.net = _build(name, output_stride, drop_path)
        try:
            with torch.no_grad():
                grid = self.eval()(torch.zeros(1, 3, 224, 224))
        except (AttributeError, RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise UserError(f"{name} gives no feature grid that cells could be taken from ({error})") from error
        self.train()
        self.normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.modules())
        self.channels = grid.shape[1]
        self.stride = 224 // grid.shape[2]
        if grid.shape[2] * self.stride != 224 or (self.stride != output_stride and output_stride != 32):
            raise UserError(f"{name} has a stride of {self.stride}, not the {output_stride} asked for")

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c g f"]:
        if self.training and self.normalises and len(images) == 1 and max(images.shape[2:]) <= self.stride:
            size = " x ".join(map(str, images.shape[2:]))
            raise UserError(
                f"a single view of {size} px is one cell of {self.name}, which batch norm cannot take: "
                "give a larger batch or larger views"
            )
        forward: Any = self.net.forward_intermediates
        return forward(images, indices=1, norm=True, intermediates_only=True)[0]

    @torch.no_grad()
    def check(self, size: int, option: str) -> None:
        """See whether views of `size` x `size` px go through; `option` is what sets their size.

        Raises:
            UserError: they do not.
        """
        training = self.training
        try:
            self.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{option} {size}: {self.name} cannot take views of {size} x {size} px ({error})"
            ) from error
        finally:
            self.train(training)

    def last_but_one(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e i j"]:
        """The grid of the stage before the last (of a ViT: the block), stride 16 in ResNets and ConvNeXts."""
        forward: Any = self.net.forward_intermediates
        return forward(images, indices=[-2], norm=True, intermediates_only=True, stop_early=True)[0]

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a cell at each stage, finest first; of a ViT, whose blocks are all alike, only one."""
        info: Any = self.net.feature_info
        strides = info.reduction() if hasattr(info, "reduction") else [stage["reduction"] for stage in info]
        return tuple(sorted(set(strides)))

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The grid at the end of each stage, finest first, as `strides` lists them."""
        forward: Any = self.net.forward_intermediates
        return forward(images, indices=len(self.strides), norm=True, intermediates_only=True)

    def load_published(self) -> None:
        """Take the backbone's own published weights, downloaded (and cached) by timm."""
        try:
            published = timm.create_model(self.name, pretrained=True, num_classes=0)
        except Exception as error:  # hub, network and cache errors of several libraries
            raise UserError(
                f"the published weights of {self.name} could not be had ({type(error).__name__}: {error}); "
                "download them elsewhere and give the file, or take random weights"
            ) from error
        self.fill(published.state_dict(), f"the published {self.name}")

    def load_file(self, path: Path) -> None:
        """Take weights from a .safetensors or .pth file in timm's (for ResNets also torchvision's) names.

        Raises:
            UserError: the file cannot be read, or a tensor of the backbone is missing in it or has another shape.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such file of weights")
        try:
            tensors: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
        except Exception as error:
            raise UserError(f"{path} is not a readable weights file ({type(error).__name__}: {error})") from error
        for key in ("state_dict", "model", "teacher"):
            tensors = tensors.get(key, tensors) if isinstance(tensors.get(key), dict) else tensors
        self.fill(tensors, str(path))

    def fill(self, tensors: dict[str, Tensor], origin: str) -> None:
        """Take every tensor of the network from `tensors`, which may hold more; `origin` names it in errors."""
        own = self.net.state_dict()
        missing = [name for name in own if name not in tensors]
        wrong = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
        if missing or wrong:
            raise UserError(
                f"{origin} does not fit {self.name}: {len(missing)} of {len(own)} tensors missing"
                f"{_some(missing)}, {len(wrong)} of another shape{_some(wrong)}"
            )
        self.net.load_state_dict({name: tensors[name] for name in own})


def _build(name: str, output_stride: int, drop_path: float) -> nn.Module:
    attempts: list[dict[str, Any]] = [{"output_stride": output_stride}] if output_stride != 32 else []
    always = {"num_classes": 0} | ({"drop_path_rate": drop_path} if drop_path else {})
    net: Any = None
    # Families of networks know different options; __init__ checks the stride that comes out.
    for options in (*attempts, {"dynamic_img_size": True}, {}):
        try:
            net = timm.create_model(name, **always, **options)  # pyright: ignore[reportArgumentType]
            break
        except TypeError:
            continue
        except (NotImplementedError, AssertionError) as error:
            raise UserError(f"{name} cannot have output_stride={output_stride} ({error})") from error
    if net is None:
        raise UserError(f"{name} cannot be built with drop_path={drop_path}")
    if not hasattr(net, "prune_intermediate_layers"):
        raise UserError(f"{name} gives no feature grid that cells could be taken from")
    net.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    # What only the classifier used would be a parameter without a gradient.
    if hasattr(net, "head"):
        net.head = nn.Identity()
    return net


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
