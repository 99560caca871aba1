"""Exact ranking, measures, significance."""
