"""A page on one's own machine where people look at slides, at what was found on them, and at the views of a run.

Imports prediction and what that imports.
"""
