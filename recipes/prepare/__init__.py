"""Programs that write manifests of known data sets."""
