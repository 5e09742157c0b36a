"""Limits on what a stranger's file may do; ``SECURITY.md`` tells users."""
