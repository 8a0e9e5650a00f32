"""From a backbone or a fine-tuned model back to whole slides: features of their tissue, and objects drawn on them.

Imports pages and what that imports.
"""
