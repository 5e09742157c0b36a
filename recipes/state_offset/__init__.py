"""Program that tunes a Mamba by offsets of its states; its own weights stay as they are."""
