"""What a method of one's own is made of (docs/extending.md)."""

from .method import Losses, Method, MethodConfig, Terms
from .rules import MostSimilar, NearestCentre, NearestFeature, Overlap, Rule

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
