"""Facts about a run's inputs, settled before its first step: their ranges, and the room beside them for text."""
