"""Slides: pyramids too large for memory, read region by region at a stated resolution."""

from .readers import ENDINGS, PLAIN_ENDINGS
from .resolution import check_mpp
from .slide import Slide

__all__ = ["ENDINGS", "PLAIN_ENDINGS", "Slide", "check_mpp"]
