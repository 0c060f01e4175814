"""Results for people: tables, plots, a folder of both."""

from aihwkit_nabn.reporting.folder import write_report
from aihwkit_nabn.reporting.plot import plot_accuracy
from aihwkit_nabn.reporting.price import after_training, markdown_price, print_price, verdict
from aihwkit_nabn.reporting.table import markdown_overview, markdown_table, print_metrics, print_table

__all__ = [
    "after_training",
    "markdown_overview",
    "markdown_price",
    "markdown_table",
    "plot_accuracy",
    "print_metrics",
    "print_price",
    "print_table",
    "verdict",
    "write_report",
]
