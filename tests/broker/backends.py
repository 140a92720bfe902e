"""The backends of this machine, and small helpers for tests that drive a broker."""

import time
from collections.abc import Callable

import pika
import pika.exceptions
import pytest

from labkit.brokers import candidates, sources
from labkit.brokers.candidates import Pins
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings


def _has_root_directory() -> bool:
    try:
        sources.from_rootfs(sources.default_rootfs())
    except BrokerError:
        return False
    return True


# Installed scripts run through the same code: tested where they are the only local broker, and in `make soak`.
_scripts = pytest.param("installed scripts", marks=pytest.mark.soak) if _has_root_directory() else "installed scripts"
BACKENDS = ("compose", "root directory", _scripts)


def pins_of(backend: str) -> tuple[str, Pins]:
    """Return how to ask for *backend*, or skip the test and say why."""
    way = next(each for each in candidates.candidates("auto", Pins()) if each.name == backend)
    try:
        way.prepare(print)
    except BrokerError as error:
        pytest.skip(f"{backend}: {error}")
    if backend == "compose":
        return "compose", Pins()
    if backend == "root directory":
        return "local", Pins(rootfs=sources.default_rootfs())
    return "local", Pins(scripts=sources.from_scripts().path)


def connect(settings: BrokerSettings, **changes: object) -> pika.BlockingConnection:
    return pika.BlockingConnection(settings.replace(**changes).to_pika()[0])


def eventually(statement: Callable[[], bool], timeout: float = 10.0) -> bool:
    """Return whether *statement* became true within *timeout* seconds."""
    end = time.monotonic() + timeout
    while not statement():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def error_of(connection: pika.BlockingConnection, timeout: float = 10.0) -> Exception:
    """Return the error that ends *connection* within *timeout* seconds."""
    end = time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            connection.process_data_events(0.1)
    except pika.exceptions.AMQPError as error:
        return error
    raise AssertionError(f"the connection is still open after {timeout} s")
