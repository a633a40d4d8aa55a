"""Scored runs in, one page or one table out."""

from lmm.report.page import build_report

__all__ = ["build_report"]
