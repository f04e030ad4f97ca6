"""The one place that states octavo's version."""

__version__ = "0.1.0"
