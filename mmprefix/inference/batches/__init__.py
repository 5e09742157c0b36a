"""Inputs of a call in batches: what is asked of each, how they are read, what they are compared with, how they run."""
