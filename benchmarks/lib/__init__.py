"""Shared by the benchmarks: timing, workloads, operation counts, random models, published variants."""
