"""From slides to tiles: which slides there are, where their tissue is, and the tiles cut from it."""
