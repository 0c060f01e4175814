"""The report: one HTML file that holds everything, for people who have never seen the project."""

from aihwkit_nabn.reporting.html.page import write_html
from aihwkit_nabn.reporting.html.sources import Source, find_sources

__all__ = ["Source", "find_sources", "write_html"]
