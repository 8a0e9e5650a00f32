"""Slides: reading them at a stated resolution, where their tissue is, and cutting them into tiles.

Imports base.
"""
