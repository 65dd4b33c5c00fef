"""One HTML page of a comparison: figures that answer to the reader, and all tables."""

from lrpilot.evaluation.page.page import PAGE_FILE, write_page

__all__ = ["PAGE_FILE", "write_page"]
