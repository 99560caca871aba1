"""Encoders, dense and multi-vector, and BM25."""
