"""Import what an extra installs, on first use."""

import importlib
from typing import Any

from labkit.errors import MissingExtra


def extra(name: str, module: str) -> Any:
    """Return *module*, which the extra *name* installs.

    Raises:
        MissingExtra: the package that holds it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        package = (exc.name or module).partition(".")[0]
        if package in ("pika", "labkit"):
            raise  # installed, and broken: that is another story
        raise MissingExtra(name, package) from exc
