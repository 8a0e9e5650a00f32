"""Backbones (any timm network with a feature grid) and what learning wraps around one: heads, key encoder, queue.

Imports base and core.
"""
