"""What is read: training sources, their order, and collections."""
