"""A pretraining: its recipe, the loop, what a run leaves, and what is measured while it trains.

Imports base, core, models, methods, slides, data and datasets.
"""
