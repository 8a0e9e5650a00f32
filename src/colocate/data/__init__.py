"""Tiles from disk to a batch: which there are (Index), how they look (inspect), each step's batch (tile_loader).

Imports base and slides.
"""
