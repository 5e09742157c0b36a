"""Runs of prefix methods, peft's own beside them, and their plot."""
