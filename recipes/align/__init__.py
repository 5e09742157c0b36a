"""Program that learns one space for pictures and texts: projections behind frozen encoders, by contrast."""
