"""Pages of pictures of a run, of several runs, and of scores.

Imports evaluate and what that imports.
"""
