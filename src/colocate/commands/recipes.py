"""`colocate recipes`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from ..recipes import RECIPES, summary


def recipes() -> None:
    """List the recipes that come with colocate: what their losses are made of, and what each is for."""
    columns = (Column(name, no_wrap=True) for name in ("recipe", "whole views", "cells", "matching", "backbone"))
    table = Table(*columns, box=None, pad_edge=False)
    made = {name: recipe() for name, recipe in RECIPES.items()}
    for name, recipe in made.items():
        if not name.endswith("-small"):
            table.add_row(name, *recipe.method.terms, recipe.encoder.backbone)
    console = Console(highlight=False, soft_wrap=True, width=180)  # rows stay whole; the terminal may wrap them
    console.print(table)
    console.print()
    for name, recipe in RECIPES.items():
        console.print(f"{name}: {summary(recipe)}")
