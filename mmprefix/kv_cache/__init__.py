"""The decoder's key-value cache: a prefix and all that is read behind it."""
