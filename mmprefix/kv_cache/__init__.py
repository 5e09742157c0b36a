"""Key-value cache of a decoder: a prefix and all text that follows it."""
