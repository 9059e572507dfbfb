"""Maps on the tile lattice over the slide."""
