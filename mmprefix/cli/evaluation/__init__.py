"""Tasks of ``mmprefix evaluate``, one file a task."""
