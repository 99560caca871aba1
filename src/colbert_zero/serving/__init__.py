"""A trained retriever at work: an index of documents on disk, and exact search in it."""
