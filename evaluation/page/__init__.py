"""One HTML page of a comparison: figures that answer to the reader, and all tables."""

from lrpilot.evaluation.page.page import write_page

__all__ = ["write_page"]
