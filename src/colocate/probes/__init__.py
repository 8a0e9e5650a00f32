"""What a frozen backbone's cells know of labelled tissue, asked without training a decoder."""

from .nearest import ProbeScore, nearest_neighbour_probe, settle_batch_norm

__all__ = ["ProbeScore", "nearest_neighbour_probe", "settle_batch_norm"]
