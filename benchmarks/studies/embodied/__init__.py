"""Studies of plans: of clips of the embedded world, and of household tasks told by known writers (ALFRED)."""
