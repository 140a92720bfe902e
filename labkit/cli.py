"""The ``labkit`` command. Its verbs are in ``labkit.lab.commands``; this says what to install to have them."""

import sys
from collections.abc import Callable

from labkit.errors import LabkitError, MissingExtra


def main() -> None:
    """Run the command; an error is one clear text on stderr and exit code 1, never a traceback."""
    try:
        _app()()
    except LabkitError as error:
        sys.stderr.write(f"labkit: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports a command that Ctrl-C ended


def _app() -> Callable[[], object]:
    try:
        from labkit.lab.commands import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("labkit"):
            raise
        raise MissingExtra("lab", error.name) from error
    return app


if __name__ == "__main__":
    main()
