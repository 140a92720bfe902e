"""Bring a connection up from a thread that may wait: the caller of ``open()``, or a recovery's own.

The thread walks hosts and addresses (``labkit.bringup``); each attempt is made on the I/O thread, and so is every
change of state.
"""

import dataclasses
import logging
import threading
import time

import pika
import pika.exceptions as px

from labkit.bringup import Bringup
from labkit.errors import LabkitError
from labkit.events import Event
from labkit.io_thread import Waiter
from labkit.lifecycle import Lifecycle, Way, begin_restoring
from labkit.link import Link
from labkit.retry import Backoff, SystemClock
from labkit.settings import BrokerSettings

LOGGER = logging.getLogger(__name__)
TURN_TIMEOUT = 10.0  # seconds for a turn on the I/O thread
UNLIMITED = 1e9  # seconds: recovery without a time limit


def follow(
    life: Lifecycle, way: Way, settings: BrokerSettings, backoff: Backoff, deadline: float, *, is_again: bool = False
) -> None:
    """Connect within *deadline* seconds, on this thread. *is_again*: it was open before, with these settings.

    Raises:
        ConnectError: nothing worked in time, or the broker refused.
        NotConnected: it was closed meanwhile.
        ConfigurationError: a TLS file cannot be read.
    """
    ends = time.monotonic() + deadline
    bringup = Bringup(
        settings,
        _Reporter(life, way),
        SystemClock(),
        lambda parameters: _open_one(life, way, parameters, ends),
        backoff=backoff,
        deadline=deadline,
        stop=way.stop,
        is_again=is_again,
    )
    try:
        link = bringup.run()
        life.io.call(lambda: life.arrived(way, link), timeout=TURN_TIMEOUT)
    except LabkitError as exc:
        if way.stop.is_set():
            raise life.not_connected() from exc
        raise


def start_recovery(
    life: Lifecycle, way: Way, settings: BrokerSettings, backoff: Backoff, failures: int, deadline: float | None
) -> None:
    """Follow *way* on a new thread, after the pause that so many *failures* in a row call for.

    Raises:
        RuntimeError: no thread can be started.
    """
    # What the pauses have grown to goes on growing. The first one is almost none: most losses are one socket.
    grown = dataclasses.replace(backoff, jitter="none").delay(max(0, failures - 1))
    pauses = dataclasses.replace(backoff, initial=grown)

    def recover() -> None:
        if way.stop.wait(pauses.delay(0)):
            return
        try:
            follow(life, way, settings, pauses, UNLIMITED if deadline is None else deadline, is_again=True)
        except Exception as exc:
            reason = exc
            life.io.post(lambda: life.gave_up(way, reason))
            if not isinstance(exc, LabkitError):
                LOGGER.exception("recovery failed; the connection stays lost")

    threading.Thread(target=recover, name="labkit-recovery", daemon=True).start()


class _Reporter:
    """Hand the bring-up's events to the lifecycle, on the I/O thread."""

    def __init__(self, life: Lifecycle, way: Way) -> None:
        self._life = life
        self._way = way

    def emit(self, event: Event, /) -> None:
        life, way = self._life, self._way
        life.io.post(lambda: life.hear(way, event))


def _open_one(life: Lifecycle, way: Way, parameters: pika.ConnectionParameters, ends: float) -> Link:
    """Return an open link to one address, with every role restored on it before *ends*."""
    limit = parameters.stack_timeout
    opened, restored = Waiter(), Waiter()
    link = Link(life.io, life)

    def start() -> None:
        if way.stop.is_set():
            opened.settle(error=px.ConnectionOpenAborted("closed while connecting"))
            return
        link.generation = life.generation + 1
        way.restored.clear()
        way.link = link
        try:
            link.start(parameters, opened)
        except Exception as exc:  # noqa: BLE001 - raised again by whoever waits
            opened.settle(error=exc)

    try:
        life.io.post(start)
        _wait(opened, limit + 1.0, "the handshake")  # Pika's own limit ends it; 1 s for a busy loop
        link.stepped_at = time.monotonic()
        life.io.post(lambda: _restore(life, way, link, restored))
        _wait_for_steps(restored, link, limit, ends)
    except BaseException as exc:
        text = f"given up: {exc!r}"
        opened.is_abandoned = True
        life.io.post(lambda: link.drop(px.ConnectionOpenAborted(text)))
        raise
    return link


def _restore(life: Lifecycle, way: Way, link: Link, restored: Waiter) -> None:
    """Restore one role after the other, those that are added meanwhile too, on the I/O thread."""
    if not link.is_open:
        restored.settle(error=link.reason)
        return
    link.on_loss = restored  # a link that ends meanwhile answers no role
    role = next(iter(life.missing(way)), None)
    if role is None:
        restored.settle()
        return
    way.restored.append(role)

    def done(told: BaseException | int) -> None:
        if isinstance(told, BaseException):
            restored.settle(error=told)
            return
        way.replayed += told
        link.stepped_at = time.monotonic()
        _restore(life, way, link, restored)

    begin_restoring(role, link, done)


def _wait(waiter: Waiter, seconds: float, what: str) -> None:
    if not waiter.wait(seconds):
        raise TimeoutError(f"{what} took longer than {seconds:.1f} s")
    waiter.result()


def _wait_for_steps(restored: Waiter, link: Link, limit: float, ends: float) -> None:
    """Wait until all is restored. *limit* is for a step: how many there are is the user's, and so is *ends*."""
    while not restored.wait(min(link.stepped_at + limit, ends) - time.monotonic()):
        now = time.monotonic()
        if now >= ends:
            raise TimeoutError("restoring what was there before took longer than there was time")
        if now >= link.stepped_at + limit:
            raise TimeoutError(f"restoring what was there before: no step within {limit:.1f} s")
    restored.result()
