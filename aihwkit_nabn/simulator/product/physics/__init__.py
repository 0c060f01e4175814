"""What happens to a tile's inputs and results, one file per effect, for every way a product is computed."""
