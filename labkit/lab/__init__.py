"""The bench: a broker to start and break, the wire to look at, exercises that are checked. Needs the `lab` extra."""

from labkit.extras import needs

with needs("lab"):
    from labkit.lab.bench import Lab

__all__ = ["Lab"]
