"""`python -m colocate` (torchrun's way in)."""

from colocate.cli.main import main

main()
