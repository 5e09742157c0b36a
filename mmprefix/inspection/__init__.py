"""Look inside a prefix: the nearest words of each position, and where in the input it looks."""
