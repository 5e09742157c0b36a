"""Programs that score what a recipe has learned."""
