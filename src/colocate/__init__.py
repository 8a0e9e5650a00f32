"""colocate: self-supervised pretraining for dense prediction in digital pathology.

What the commands do, from Python (each function's options are those of its command):

    run = colocate.pretrain("colocate", data="tiles", out="run", epochs=10)
    print(colocate.evaluate("probe", data="glas", backbones=[run, "random"]))
    objects = colocate.load_model("results/...").predict(image)

The pieces for your own training loop, a complete dense loss in ten lines:

>>> import torch
>>> from colocate import ViewConfig, info_nce, overlap, sample_views
>>> tiles = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
>>> first, second, *_ = sample_views(tiles, ViewConfig(size=64), seed=0)
>>> encoder = torch.nn.Conv2d(3, 16, kernel_size=8, stride=8)                   # any network with a feature grid
>>> query, key = (encoder(view.images).flatten(2).mT for view in (first, second))   # (4, 64, 16): 8 x 8 cells
>>> match = overlap(first.crop, second.crop, cells=8)
>>> partner = match.pool(key)                                # each cell's tissue as the other view saw it
>>> negatives = torch.randn(128, 16)
>>> loss = info_nce(query.flatten(0, 1), partner.flatten(0, 1), negatives, match.weight.flatten())
>>> loss.backward()
>>> match.weight.shape, bool(loss > 0)
(torch.Size([4, 64]), True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colocate.api import Results, Run, evaluate, features, load_model, predict, prepare, pretrain, report, tile
    from colocate.base.errors import Interrupted, UserError
    from colocate.core.geometry import Crop
    from colocate.core.matching import Match, overlap
    from colocate.core.objectives import info_nce
    from colocate.core.settings import ViewConfig
    from colocate.core.views import Batch, View, sample_views
    from colocate.data.inspect import inspect
    from colocate.models.backbones import load_backbone
    from colocate.training.checkpoint import export

__all__ = [
    "Batch",
    "Crop",
    "Interrupted",
    "Match",
    "Results",
    "Run",
    "UserError",
    "View",
    "ViewConfig",
    "evaluate",
    "export",
    "features",
    "info_nce",
    "inspect",
    "load_backbone",
    "load_model",
    "overlap",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "sample_views",
    "tile",
]
__version__ = "0.2.0"
_PLACES = {
    "api": ("Results", "Run", "evaluate", "features", "load_model", "predict", "prepare", "pretrain", "report", "tile"),
    "base.errors": ("Interrupted", "UserError"),
    "core.geometry": ("Crop",),
    "core.matching": ("Match", "overlap"),
    "core.objectives": ("info_nce",),
    "core.settings": ("ViewConfig",),
    "core.views": ("Batch", "View", "sample_views"),
    "data.inspect": ("inspect",),
    "models.backbones": ("load_backbone",),
    "training.checkpoint": ("export",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    """What `__all__` promises, loaded when it is asked for: torch and timm take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
