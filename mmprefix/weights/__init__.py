"""Frozen weights: where they come from, how they are loaded, what hash they have."""
