"""Results for people: tables, plots, a folder of both."""

from aihwkit_nabn.reporting.folder import write_report
from aihwkit_nabn.reporting.plot import plot_accuracy
from aihwkit_nabn.reporting.table import markdown_overview, markdown_table, print_table

__all__ = ["markdown_overview", "markdown_table", "plot_accuracy", "print_table", "write_report"]
