"""The bench: a broker to start and break, the wire to look at, exercises that are checked. Needs the `lab` extra."""

from typing import TYPE_CHECKING, Any

from labkit.extras import needs

if TYPE_CHECKING:
    from labkit.lab.bench import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    # On first use: the command `labkit` needs a module or two of this package, and is not to wait for the whole bench.
    if name == "Lab":
        with needs("lab"):
            from labkit.lab.bench import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
