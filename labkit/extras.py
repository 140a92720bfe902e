"""Import what an extra installs, and say which extra that is where it is missing."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labkit.concurrency.guard import guard
from labkit.errors import MissingExtra

# Modules that import each other, as gevent's do, can be begun by two threads from two ends: each then waits for what
# the other has. Up to Python 3.13 one of them gets a module that is half made, since 3.14 an error: deadlock detected.
_FIRST_IMPORT = guard()


def extra(name: str, module: str) -> Any:
    """Return *module*, which the extra *name* installs. Threads may call this at once: they import in turn.

    Raises:
        MissingExtra: the package that holds it is not installed.
    """
    try:
        with _FIRST_IMPORT:
            return importlib.import_module(module)
    except ImportError as exc:
        package = (exc.name or module).partition(".")[0]
        if package in ("pika", "labkit"):
            raise  # installed, and broken: that is another story
        raise MissingExtra(name, package) from exc


@contextmanager
def needs(name: str) -> Iterator[None]:
    """Have what is imported in the block, and is not installed, named with the extra *name*.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except MissingExtra as exc:  # of a part that this one uses
        raise MissingExtra(name, exc.package) from exc
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in ("pika", "labkit"):
            raise
        raise MissingExtra(name, exc.name) from exc
