"""Texts of the help that no verb holds itself."""
