"""A second, unprivileged user of this machine, played by a test that runs as root."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

STRANGER = 65534  # nobody's number; no password and no home are needed
only_as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as a second user"
)


def give_away(*paths: Path) -> None:
    """Make *paths*, and what is in them, the stranger's."""
    for path in paths:
        for each in (path, *path.rglob("*")):
            os.chown(each, STRANGER, STRANGER, follow_symlinks=False)


def as_stranger(do: Callable[[], object]) -> str:
    """Call *do* in a child that is the stranger; return how it ended: "" or the exception's name and text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            os.chdir("/")
            do()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    return said
