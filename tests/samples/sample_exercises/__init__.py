"""Exercises of a notebook that exists only in tests."""
