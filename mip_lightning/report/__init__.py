"""Reports: from the files of finished runs to tables."""

from mip_lightning.report.table import summarize

__all__ = ["summarize"]
