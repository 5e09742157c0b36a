"""Programs that make manifests of plain texts."""
