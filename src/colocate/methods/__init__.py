"""One file a method: how two views become losses. For a method of your own see docs/how-to/own-method.md.

Imports base, core and models.
"""

from colocate.methods.method import Losses, Method, MethodConfig, Terms
from colocate.methods.rules import MostSimilar, NearestCentre, NearestFeature, Overlap, Rule

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
