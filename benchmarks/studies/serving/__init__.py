"""Costs and gains of prefixes where they are served."""
