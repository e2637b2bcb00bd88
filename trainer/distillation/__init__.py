"""Teachers and the distance to them."""
