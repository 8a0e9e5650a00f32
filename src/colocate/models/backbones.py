"""Any timm network as a backbone: images in, one grid of feature cells out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, NotRequired, final

import pydantic
import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import get_session
from jaxtyping import Float, Shaped
from pydantic import Field, FiniteFloat, PositiveInt
from safetensors.torch import load, load_file
from timm.layers import DropPath
from torch import Tensor, nn
from typing_extensions import TypedDict

from colocate.base.errors import UserError
from colocate.base.files import read_json
from colocate.base.text import reason

ANSWER_S = 5  # which the hub may take to answer
Scale = Annotated[FiniteFloat, Field(gt=0)]


@final
class Backbone(nn.Module):
    """A timm network's feature grid: (b, 3, H, W) to (b, c, H / stride, W / stride).

    The grid is the last one (dilated to `output_stride`), or that of the stage of stride `cell_stride`, as the network
    has it; stages after that one are kept as they are, and do not run.
    `net` keeps timm's own weight names (for ResNets they are torchvision's too). Patch tokens of a ViT are laid out
    as a grid; class and register tokens are left out.

    Raises:
        UserError: timm has no such network, or it gives no feature grid, or not at this stride.
    """

    def __init__(
        self, name: str = "resnet18", output_stride: int = 32, drop_path: float = 0.0, cell_stride: int | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.facts: dict[str, Any] = {}  # what backbone.json says; of one that trains, its images' mean and std
        self.output_stride = output_stride
        self.cell_stride = cell_stride
        self.keeps_statistics = False
        # timm names a repository of a hub, or a folder, with a colon; what is in it only it can tell.
        if ":" not in name and not timm.is_model(name):
            close = ", ".join(get_close_matches(name, timm.list_models(), 5))
            raise UserError(f"timm has no network called {name!r}" + (f"; near it: {close}" if close else ""))
        self.net, self.arguments, self.pruned = _build(name, output_stride, drop_path)
        if cell_stride is not None and cell_stride not in self.strides:
            raise UserError(f"{name} has stages of strides {', '.join(map(str, self.strides))}, none of {cell_stride}")
        try:
            with torch.no_grad():
                grid = self.eval()(torch.zeros(1, 3, 224, 224))
        except (AttributeError, RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise UserError(f"{name} gives no feature grid that cells could be taken from ({error})") from error
        self.train()
        self.normalises = bool(batch_norms(self))
        self.channels = grid.shape[1]
        self.stride = 224 // grid.shape[2]
        wanted = cell_stride or output_stride
        uneven = self.stride != (cell_stride or self.strides[-1])  # rounded up, as 3.5 cells of 64 px to 4
        if uneven or grid.shape[2] * self.stride != 224 or (self.stride != wanted and wanted != 32):
            raise UserError(f"{name} has a stride of {self.stride}, not the {wanted} asked for")

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c g f"]:
        if self.training and self.normalises and len(images) == 1 and max(images.shape[2:]) <= self.stride:
            size = " x ".join(map(str, images.shape[2:]))
            raise UserError(
                f"a single view of {size} px is one cell of {self.name}, which batch norm cannot take: "
                "give a larger batch or larger views"
            )
        return self._grid(images, self.cell_stride)

    def _grid(self, images: Float[Tensor, "b 3 h w"], stride: int | None) -> Float[Tensor, "b c g f"]:
        """The grid of the stage of a stride; None: the last."""
        forward: Any = self.net.forward_intermediates
        indices = 1 if stride is None or stride == self.strides[-1] else [self.place(stride)]
        return forward(images, indices=indices, norm=True, intermediates_only=True, stop_early=indices != 1)[0]

    def place(self, stride: int) -> int:
        """The place among all stages of the last one of a stride."""
        return max(place for place, other in enumerate(self.strides_of_stages) if other == stride)

    def train(self, mode: bool = True) -> Backbone:
        """As of any module; batch norms that keep their statistics stay in evaluation mode."""
        super().train(mode)
        for norm in batch_norms(self) if self.keeps_statistics else ():
            norm.eval()
        return self

    def freeze(self, stride: int | None = None, statistics: bool = False) -> None:
        """Keep the weights of what comes before the end of the stage of `stride`, and of what comes after the cells.

        `statistics`: batch norms normalise by the statistics that they have, also in training; their scales and shifts
        still learn.

        Raises:
            UserError: there is no such stage before the cells.
        """
        if stride is not None and (stride not in self.strides or stride >= self.stride):
            before = ", ".join(str(other) for other in self.strides if other < self.stride) or "none"
            raise UserError(f"{self.name} has no stage of stride {stride} to be frozen: before its cells are {before}")
        if self.cell_stride is not None:
            learns = self._reached(self.cell_stride)
            for weight in self.parameters():
                weight.requires_grad_(id(weight) in learns)
        if stride is not None:
            frozen = self._reached(stride)
            for weight in self.parameters():
                weight.requires_grad_(weight.requires_grad and id(weight) not in frozen)
        self.keeps_statistics = statistics
        self.train(self.training)

    def _reached(self, stride: int) -> set[int]:
        """The parameters that the grid of a stage depends on, by id: those that its gradient reaches."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        training = self.training
        with torch.enable_grad():
            found = torch.autograd.grad(
                self.eval()._grid(torch.zeros(1, 3, 224, 224), stride).sum(), weights, allow_unused=True
            )
        self.train(training)
        return {id(weight) for weight, grad in zip(weights, found, strict=True) if grad is not None}

    @torch.no_grad()
    def check(self, size: int, option: str) -> None:
        """See whether views of `size` x `size` px go through, as whole cells; `option` is what sets their size.

        Raises:
            UserError: they do not, or cells would lie elsewhere than where a grid over the view has them.
        """
        if size % self.stride:
            near = max(1, round(size / self.stride)) * self.stride
            raise UserError(f"{option} {size} is no whole number of cells of {self.stride} px: give {near}")
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
        """The strides that stages have, finest first; of a ViT, whose blocks are all alike, only one."""
        return tuple(sorted(set(self.strides_of_stages)))

    @property
    def strides_of_stages(self) -> list[int]:
        """Pixels a cell at each stage, in their order; dilated ones have the stride of the one before."""
        info: Any = self.net.feature_info
        return info.reduction() if hasattr(info, "reduction") else [stage["reduction"] for stage in info]

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The grid at the end of each stage, finest first, as `strides` lists them; of those of one stride the last."""
        forward: Any = self.net.forward_intermediates
        return forward(images, indices=list(map(self.place, self.strides)), norm=True, intermediates_only=True)

    def load(self, weights: str) -> None:
        """Take weights: `published` (the backbone's own, downloaded and cached by timm), a file's, or keep the `random`
        ones that it has.

        Raises:
            UserError: they cannot be had, or do not fit.
        """
        if weights == "random":
            return
        if weights != "published":
            self.load_file(Path(weights))
            return
        offline, reached = hub.HF_HUB_OFFLINE, self.name.startswith("local-dir:") or _hub_answers()
        hub.HF_HUB_OFFLINE = offline or not reached  # what is in its cache is taken at once then
        try:
            with torch.random.fork_rng(devices=[]):  # what is drawn after it does not depend on it
                published = timm.create_model(self.name, pretrained=True, num_classes=0)
        except Exception as error:  # hub, network and cache errors of several libraries
            why = f"could not be had ({type(error).__name__}: {error})"
            if not reached:
                why = f"are not on this machine, and {hub.ENDPOINT} cannot be reached"
            raise UserError(
                f"the published weights of {self.name} {why}: download them elsewhere and give the file, or take "
                "random weights"
            ) from error
        finally:
            hub.HF_HUB_OFFLINE = offline
        self.fill(published.state_dict(), f"the published {self.name}")

    @property
    def published_look(self) -> dict[str, tuple[float, float, float]]:
        """Mean and standard deviation of the images (in [0, 1]) that the published weights learned from."""
        known: Any = self.net.pretrained_cfg
        return {"mean": tuple(known["mean"]), "std": tuple(known["std"])}

    def load_file(self, path: Path) -> None:
        """Take weights from a .safetensors or .pth file in timm's (for ResNets also torchvision's) names.

        Raises:
            UserError: the file cannot be read, or a tensor of the backbone is missing in it or has another shape, or
                it holds more than the backbone and a head: it is of another variant of the network.
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
        if not isinstance(tensors, dict):
            raise UserError(f"{path} holds no weights by name, but a {type(tensors).__name__}")
        for key in ("state_dict", "model", "teacher"):
            tensors = tensors.get(key, tensors) if isinstance(tensors.get(key), dict) else tensors
        self.fill(tensors, str(path))

    def fill(self, tensors: dict[str, Tensor], origin: str) -> None:
        """Take every tensor of the network from `tensors`, which may hold a head too; `origin` names it in errors."""
        own = self.net.state_dict()
        missing = [name for name in own if name not in tensors]
        wrong = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
        if missing or wrong:
            raise UserError(
                f"{origin} does not fit {self.name}: {len(missing)} of {len(own)} tensors missing"
                f"{_some(missing)}, {len(wrong)} of another shape{_some(wrong)}"
            )
        # A tensor more inside a part of the network (a layer's scale, a norm) changes what it computes.
        parts, known = {name.partition(".")[0] for name in own} - {"head"}, own.keys() | self.pruned
        if more := [name for name in tensors if name not in known and name.partition(".")[0] in parts]:
            raise UserError(f"{origin} fits another variant of {self.name}: {len(more)} tensors too many{_some(more)}")
        self.net.load_state_dict({name: tensors[name] for name in own})


@contextmanager
def taking(network: nn.Module, images: Shaped[Tensor, "b 3 h w"]) -> Iterator[None]:
    """A network's look at images, which one of a fixed input size cannot take where they have another.

    Raises:
        UserError: it failed, though not for want of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        name, size = getattr(network, "name", type(network).__name__), " x ".join(map(str, images.shape[2:]))
        raise UserError(
            f"{name} cannot take images of {size} px ({reason(error)}): choose a network that takes any size, such as "
            "resnet18"
        ) from error


def _hub_answers() -> bool:
    """Whether Hugging Face's hub can be reached: its own client finds out in a minute, by trying again and again."""
    try:
        get_session().head(hub.ENDPOINT, timeout=ANSWER_S)
    except Exception:  # of whichever client of HTTP it has
        return False
    return True


def batch_norms(network: nn.Module) -> list[Any]:
    """The batch norms of a network."""
    return [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def is_exported(path: str | PathLike[str]) -> bool:
    """Whether a path is what `load_backbone` takes: a folder, or weights with a .json of their name beside them."""
    path = Path(path)
    return path.is_dir() or (path.is_file() and path.with_suffix(".json").is_file())


def names_run(init: str) -> bool:
    """Whether first weights are a run's: not a word for others, nor a plain file."""
    return init not in ("random", "published") and is_exported(init)


def load_backbone(path: str | PathLike[str]) -> Backbone:
    """Rebuild an exported backbone: (b, 3, H, W), normalised as `facts` says, to (b, c, H / stride, W / stride).

    `path` is a run folder or its backbone.safetensors; backbone.json beside it says what it is, and becomes the
    attribute `facts` of the result. It comes in evaluation mode.

    Raises:
        UserError: a file is missing or unreadable, or says wrongly what a backbone needs; or not every tensor is there
            and fits.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run")
    weights = path / "backbone.safetensors" if path.is_dir() else path
    told = weights.with_suffix(".json")
    if not told.is_file():
        inside = [str(found.parent) for found in sorted(path.glob("*/backbone.json"))]
        meant = f": perhaps {inside[0]} is meant" if inside else ""
        raise UserError(f"{path} is no backbone of colocate ({told} is missing): give the folder of a run{meant}")
    kind = "backbone.json of a colocate run, beside its weights"
    try:
        facts: dict[str, Any] = dict(_FACTS.validate_python(read_json(told, kind), extra="allow"))
    except pydantic.ValidationError as error:
        raise UserError(f"{told} ({reason(error)}) is no {kind}") from error
    tensors = read_tensors(weights, facts.get("sha256"))
    backbone = Backbone(facts["architecture"], facts["output_stride"], cell_stride=facts.get("cell_stride"))
    if unknown := sorted(set(tensors) - set(backbone.net.state_dict())):
        raise UserError(f"{weights} holds tensors that {backbone.name} does not have ({', '.join(unknown[:3])})")
    backbone.fill(tensors, str(weights))
    backbone.facts = facts
    return backbone.eval()


class _Facts(TypedDict):
    """What backbone.json must say rightly; the rest of it tells people where the backbone comes from."""

    architecture: str
    output_stride: PositiveInt
    cell_stride: NotRequired[PositiveInt | None]
    mean: Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
    std: Annotated[list[Scale], Field(min_length=3, max_length=3)]
    mpp: NotRequired[Scale | None]
    sha256: NotRequired[str]


_FACTS = pydantic.TypeAdapter(_Facts)


def read_tensors(path: Path, known: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, whose SHA-256 is `known`.

    Raises:
        UserError: it cannot be read, or is not what it was.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
    except Exception as error:  # safetensors raises its own kinds
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error
    if known is not None and sha256(content).hexdigest() != known:
        raise UserError(f"{path} is not what backbone.json was written with: it is damaged, or of another run")
    return tensors


def _build(name: str, output_stride: int, drop_path: float) -> tuple[nn.Module, dict[str, Any], set[str]]:
    """The network, pruned to what cells depend on, the arguments that say to timm which cells it shall have, and the
    names of the tensors that were pruned."""
    stride: dict[str, Any] = {"output_stride": output_stride} if output_stride != 32 else {}
    # The reference's residual branches take part from the start; timm's ResNets begin with a last norm of zero.
    attempts: list[dict[str, Any]] = [{**stride, "zero_init_last": False}, *([stride] if stride else [])]
    always = {"num_classes": 0} | ({"drop_path_rate": drop_path} if drop_path else {})
    net: Any = None
    options: dict[str, Any] = {}
    # Families of networks know different options; __init__ checks the stride that comes out.
    for options in (*attempts, {"dynamic_img_size": True}, {}):
        try:
            net = timm.create_model(name, **always, **options)  # pyright: ignore[reportArgumentType]
            break
        except TypeError:
            continue
        except (NotImplementedError, AssertionError) as error:
            raise UserError(f"{name} cannot have output_stride={output_stride} ({error})") from error
        except Exception as error:  # of a hub or a folder, which timm does not list
            raise UserError(f"timm cannot build {name} ({type(error).__name__}: {error})") from error
    if net is None:
        raise UserError(f"{name} cannot be built with drop_path={drop_path}")
    if not drop_path:  # some networks have a rate of their own (Swin's is 0.1)
        keep_paths(net)
    if not hasattr(net, "prune_intermediate_layers"):
        raise UserError(f"{name} gives no feature grid that cells could be taken from")
    whole = set(net.state_dict())
    net.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    # What only the classifier used would be a parameter without a gradient.
    if hasattr(net, "head"):
        net.head = nn.Identity()
    kept = {name: value for name, value in options.items() if name != "zero_init_last"}
    return net, kept, whole - set(net.state_dict())


def keep_paths(network: nn.Module) -> None:
    """Leave out no residual branch, also in training."""
    for part in network.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
