"""Verbs about the installation itself: what is installed, which recipes are shipped, what a shell can complete."""
