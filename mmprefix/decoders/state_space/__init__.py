"""Prefixes of decoders whose layers carry a state instead of keys and values (Mamba)."""
