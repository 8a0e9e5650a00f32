"""Convert labelled data sets as released to colocate's own form, a file for each, and read that form (`Labelled`).

Imports base, slides and data.
"""
