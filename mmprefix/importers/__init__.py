"""Checkpoints of the original code → a model of this package."""
