"""Fuzz program: mutated media, manifests, recipes, model directories, checkpoints and shards through the command line.

python -m tests.fuzz --inputs 1200 --seed 0
"""
