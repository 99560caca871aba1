"""An index that is a collection of Qdrant."""
