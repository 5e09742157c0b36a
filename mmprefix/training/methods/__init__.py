"""Ways to train of single papers: callbacks and tasks that a recipe names beside its mapper."""
