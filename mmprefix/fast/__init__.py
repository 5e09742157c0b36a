"""The same results sooner: each file is exact, may be skipped by a reader, and can be switched off."""
