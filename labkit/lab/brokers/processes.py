"""Tell one process from another that got its number, and end it in bounded time. Knows no broker."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from labkit.errors import BrokerError

POLL = 0.02  # seconds between two looks
EPMD_KILL = b"\x00\x01k"  # length, KILL_REQ (Erlang distribution protocol, "Kill EPMD")


def identity(pid: int) -> str:
    """Return when process *pid* began, in words that no other process shares; "" when it is gone.

    On Linux the boot's own id is part of it: after a reboot nothing is the same process. A zombie
    (ended, and not yet collected by its parent) counts as gone, but not while it has threads left:
    its first thread may end before the others, which hold its ports until then.
    """
    if pid <= 0:
        return ""
    stat = _linux_stat(pid)
    if stat is not None:
        if not stat or (stat[0] in {"Z", "X"} and int(stat[17]) <= 1):
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{stat[19]}"
    return _ps(pid, "lstart=")


def is_paused(pid: int) -> bool:
    """Return whether process *pid* is stopped by a signal."""
    stat = _linux_stat(pid)
    state = stat[0] if stat else _ps(pid, "state=")
    return state[:1] in {"T", "t"}


def send(pid: int, expected: str, name: str) -> None:
    """Send the signal called *name* to process *pid* if it still is the one that was *expected*."""
    # Never without an identity: signals to process 0 reach our own group.
    if expected and identity(pid) == expected:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, name))


def wait_gone(pid: int, expected: str, timeout: float) -> bool:
    """Return whether the process ended within *timeout* seconds."""
    end = time.monotonic() + timeout
    while expected and identity(pid) == expected:
        if time.monotonic() >= end:
            return False
        time.sleep(POLL)
    return True


def end_epmd(port: int, timeout: float = 3.0) -> None:
    """End the Erlang port mapper at *port* of this machine, which a node leaves behind; none is fine.

    It refuses while it believes a node alive, which it does for some milliseconds after a kill, so
    we ask again until *timeout* seconds have passed.

    Raises:
        BrokerError: it still answers.
    """
    end = time.monotonic() + timeout
    answer = b""
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), 1.0) as link:
                link.sendall(EPMD_KILL)
                answer = link.recv(2)
        except ConnectionRefusedError:
            return
        except OSError:
            pass
        time.sleep(POLL)
    raise BrokerError(f"the port mapper at 127.0.0.1:{port} is still there after {timeout:g} s (it said {answer!r})")


def _linux_stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; [] for no such process, None off Linux."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets


def _ps(pid: int, what: str) -> str:
    if os.name == "nt":
        return ""
    try:
        shown = subprocess.run(
            ["ps", "-o", what, "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(shown.stdout.split())
