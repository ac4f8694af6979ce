"""A sweep's report: many runs on one page, seeds put together, and the same table as CSV, Markdown and LaTeX."""

from atrl.report.sweep.build import write_sweep_report

__all__ = ["write_sweep_report"]
