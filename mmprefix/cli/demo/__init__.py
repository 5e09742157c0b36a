"""The verb that starts the page: ``mmprefix demo``."""
