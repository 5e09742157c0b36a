"""Benchmarks of the page and the service."""
