"""What prefixes cost and gain where they are served."""
