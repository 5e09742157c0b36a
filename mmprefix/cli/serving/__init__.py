"""Verb that serves models over HTTP."""
