"""Is a backbone any good for segmentation? So far: probes that train nothing."""

from .probes import ProbeScore, nearest_neighbour_probe, settle_batch_norm

__all__ = ["ProbeScore", "nearest_neighbour_probe", "settle_batch_norm"]
