"""Throw a private broker away when the process that owns it is gone, however it went.

Run as a script of its own: it waits on a pipe that only the owner holds, so that even a SIGKILL of
the owner is noticed, on every system. Until then it imports nothing of labkit and costs nothing.

    python guard.py HOME DIRECTORY_OF_THE_PACKAGE
"""

import shutil
import site
import sys

RELEASED = b"released\n"


def wait_for_owner() -> bool:
    """Return whether the owner went without releasing its broker."""
    return sys.stdin.buffer.readline() != RELEASED


if __name__ == "__main__" and wait_for_owner():
    home, package = sys.argv[1:3]
    site.main()
    sys.path.insert(0, package)
    from labkit.brokers.attached import discard

    try:
        discard(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
