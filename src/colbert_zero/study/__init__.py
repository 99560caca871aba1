"""Pipelines of phases, trained, evaluated and compared."""
