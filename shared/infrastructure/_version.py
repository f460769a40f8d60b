"""The one place the version stands in; the distribution reads it from here."""

__version__ = "0.1.0"
