"""Tell a node's processes from any others, and end them in bounded time. Knows no broker.

A process is a node's if it is this user's and its environment names the node. That environment is what the process was
started with: no other user can give one of our processes another, and a state file cannot make a process one of ours.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from labkit.errors import BrokerError

POLL = 0.02  # seconds between two looks
NODE = "RABBITMQ_NODENAME"  # the variable that names the node; its port mapper and rabbitmqctl have it, too
PROC = Path("/proc")


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
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{stat[19]}"
    return _ps(pid, "lstart=")


def is_paused(pid: int) -> bool:
    """Return whether process *pid* is stopped by a signal."""
    stat = _linux_stat(pid)
    state = stat[0] if stat else _ps(pid, "state=")
    return state[:1] in {"T", "t"}


def is_of_node(pid: int, node: str) -> bool:
    """Return whether process *pid* is this user's and was started for *node*."""
    if sys.platform == "win32" or pid <= 0:
        return False
    if not _has_proc():
        return f" {NODE}={node} " in _ps(pid, "command=", "-E", "-ww") + " "
    try:
        if (PROC / str(pid)).stat().st_uid != os.geteuid():
            return False
        return f"{NODE}={node}".encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False


def of_node(node: str) -> list[int]:
    """Return the processes of *node* that live now: the broker, its port mapper, a rabbitmqctl."""
    if sys.platform == "win32":
        return []
    if _has_proc():
        known = [int(each.name) for each in PROC.iterdir() if each.name.isdecimal()]
    else:
        known = [int(each) for each in _run("ps", "-u", str(os.geteuid()), "-o", "pid=").split()]
    return [pid for pid in known if pid != os.getpid() and is_of_node(pid, node) and identity(pid)]


def end_node(node: str, timeout: float = 10.0) -> bool:
    """End every process of *node* (SIGKILL) and return whether there was one.

    Raises:
        BrokerError: one is still there after *timeout* seconds.
    """
    end = time.monotonic() + timeout
    found = False
    while left := of_node(node):
        found = True
        for pid in left:
            send(pid, identity(pid), "SIGKILL", node)
        if time.monotonic() >= end:
            raise BrokerError(f"{len(left)} processes of {node} are still there {timeout:g} s after SIGKILL")
        time.sleep(POLL)
    return found


def root(pid: int) -> Path:
    """Return the directory that process *pid* takes for the root (Linux)."""
    return (PROC / str(pid) / "root").readlink()


def send(pid: int, expected: str, name: str, node: str) -> None:
    """Send the signal called *name* to process *pid* if it still is the one that was *expected*, and *node*'s."""
    # Never without an identity: signals to process 0 reach our own group.
    if expected and identity(pid) == expected and is_of_node(pid, node):
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


def _linux_stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; [] for no such process, None off Linux."""
    if not _has_proc():
        return None
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets


def _has_proc() -> bool:
    return (PROC / "self" / "stat").exists()


def _ps(pid: int, what: str, *options: str) -> str:
    return "" if os.name == "nt" else _run("ps", *options, "-o", what, "-p", str(pid))


def _run(*command: str) -> str:
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(shown.stdout.split())
