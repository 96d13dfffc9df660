"""A page about a data set: one self-contained HTML file of counts, histograms and pictures."""

from kiss3d_train.data.report.page import write_page

__all__ = ["write_page"]
