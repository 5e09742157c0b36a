"""What `evaluate` scores, one file a task."""
