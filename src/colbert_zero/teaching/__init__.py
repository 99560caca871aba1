"""Hard negatives and teacher scores."""
