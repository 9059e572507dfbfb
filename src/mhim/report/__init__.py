"""One self-contained HTML report per set of runs."""

from __future__ import annotations

from mhim.report.config import ReportConfig
from mhim.report.page import write_report

__all__ = ["ReportConfig", "write_report"]
