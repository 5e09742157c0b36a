"""Endpoints of the service, and the forms of what they take."""
