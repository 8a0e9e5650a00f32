"""Does a backbone segment better? Fine-tuning, scores, seeds and comparisons that can be trusted.

Imports training and what that imports.
"""
