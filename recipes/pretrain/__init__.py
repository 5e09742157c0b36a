"""Programs that train the small frozen parts of recipes that run anywhere."""
