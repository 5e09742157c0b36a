"""Questions and words that the reader is trained on."""
