"""`python -m colocate` (torchrun's way in)."""

from .cli import main

main()
