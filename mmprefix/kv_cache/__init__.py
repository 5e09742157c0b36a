"""The decoder's key-value cache: a prefix and all text that is read behind it."""
