"""The bench: a broker to start and break, the wire to look at, exercises that are checked. Needs the `lab` extra."""

from labkit.errors import MissingExtra

try:
    from labkit.lab.bench import Lab
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("labkit"):
        raise
    raise MissingExtra("lab", error.name) from error

__all__ = ["Lab"]
