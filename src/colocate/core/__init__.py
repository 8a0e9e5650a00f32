"""The mathematics, without networks or files: crops and how they overlap, matching, objectives, augmented views.

Pure functions of tensors. Imports base.
"""
