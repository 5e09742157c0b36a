"""Tabs of the page: one input, spoken commands, many files."""
