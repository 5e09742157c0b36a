"""Importers of other programs' checkpoints: ClipCap and Prefix-AAC."""
