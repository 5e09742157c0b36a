"""Self-contained HTML reports of a run: curves, a gallery of captions, DET curve, confusion of intents."""
