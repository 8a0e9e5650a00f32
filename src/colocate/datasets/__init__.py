"""Labelled sets as released in, colocate's own form out: a file for each, and `Labelled`, which reads that form.

Imports base, slides and data.
"""
