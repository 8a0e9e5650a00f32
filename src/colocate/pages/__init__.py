"""Pages, each one file of HTML, of a run, of several runs, of results and of slides.

Imports evaluation and what that imports.
"""
