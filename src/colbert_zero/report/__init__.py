"""The report: a function of a run's JSON records alone. It imports no training code, and no torch."""

from colbert_zero.report.page import write_report

__all__ = ["write_report"]
