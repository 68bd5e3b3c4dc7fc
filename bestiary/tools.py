"""What a plugin's commands are made of, so that they look and answer like the built-in ones."""

from bestiary.core.cli.answer import open_hf, open_model
from bestiary.core.cli.options import print_json
from bestiary.core.cli.report import progress, table
from bestiary.core.progress import Progress
from bestiary.core.reports.page import Page, plotly
from bestiary.core.reports.schema import JsonReport

__all__ = ["JsonReport", "Page", "Progress", "open_hf", "open_model", "plotly", "print_json", "progress", "table"]
