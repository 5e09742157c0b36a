"""Verb that looks inside a prefix."""
