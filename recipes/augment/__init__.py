"""Programs that make more training rows of those that there are."""
