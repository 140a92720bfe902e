"""The version of labkit: one line that anything may import."""

__version__ = "0.1.0"
