"""Slow, independent oracles: the equations written out, one per file, each with its source."""
