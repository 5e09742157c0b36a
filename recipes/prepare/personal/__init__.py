"""Programs that prepare data of known users: one file a data set, and what they share."""
