"""One file a method: how two views become losses. What a method of your own is made of stands here (docs/extending.md).

Imports base, core and models.
"""

from typing import TYPE_CHECKING, Any

from colocate.methods.rules import MostSimilar, NearestCentre, NearestFeature, Overlap, Rule
from colocate.methods.settings import MethodConfig, Terms

if TYPE_CHECKING:
    from colocate.methods.method import Losses, Method

__all__ = [
    "Losses",
    "Method",
    "MethodConfig",
    "MostSimilar",
    "NearestCentre",
    "NearestFeature",
    "Overlap",
    "Rule",
    "Terms",
]


def __getattr__(name: str) -> Any:
    """What needs torch, loaded when it is asked for."""
    if name not in ("Losses", "Method"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from colocate.methods import method

    return getattr(method, name)
