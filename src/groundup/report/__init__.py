"""Reports: what a run promised, what came, and what was left behind, from its folder alone."""

from groundup.report.html import report_text, write_report

__all__ = ["report_text", "write_report"]
