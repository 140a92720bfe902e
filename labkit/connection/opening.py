"""Bring a connection up from a thread that may wait: the caller of ``open()``, or a recovery's own.

The thread walks hosts and addresses (``labkit.connector.blocking``); each attempt is made on the I/O thread, and so is
every change of state.
"""

import dataclasses
import logging
import threading
import time

import pika
import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import kind_of_loss
from labkit.connection.lifecycle import ConnectTask, Lifecycle
from labkit.connection.link import Link
from labkit.connection.role import begin_restoring
from labkit.connector.blocking import Bringup
from labkit.errors import LabkitError, NotConnected, describe
from labkit.events import Event
from labkit.retry import Backoff, SystemClock
from labkit.settings.settings import BrokerSettings

LOGGER = logging.getLogger(__name__)
LEAST_TURN = 0.25  # seconds for a turn on the I/O thread, also when the deadline is nearer
UNLIMITED = 1e9  # seconds: recovery without a time limit


class NotRestored(NotConnected):
    """The broker took us in, and the link ended before all that lives on it was restored: that is no refusal.

    Attributes:
        kind: Whether to wait longer before the next attempt.
    """

    def __init__(self, reason: BaseException) -> None:
        text = f"the link was lost before all that lives on it was restored: {describe(reason)}"
        super().__init__(text, reason=reason)
        self.kind = kind_of_loss(reason)


def run_connect(
    life: Lifecycle,
    task: ConnectTask,
    settings: BrokerSettings,
    backoff: Backoff,
    deadline: float,
    *,
    is_again: bool = False,
    retry_refused: float = 0.0,
) -> None:
    """Connect within *deadline* seconds, on this thread.

    Args:
        life: The connection's.
        task: What is followed.
        settings: Where to connect.
        backoff: The pauses.
        deadline: Seconds.
        is_again: Recovery: it was open before, with these settings, and nobody waits.
        retry_refused: Seconds for which a refused login is tried again; recovery only.

    Raises:
        ConnectError: nothing worked in time, or the broker refused.
        NotConnected: it was closed meanwhile.
        ConfigurationError: a TLS file cannot be read.
    """
    ends = time.monotonic() + deadline
    bringup = Bringup(
        settings,
        _Reporter(life, task),
        SystemClock(),
        lambda parameters: _open_one(life, task, parameters, ends, is_again=is_again),
        backoff=backoff,
        deadline=deadline,
        stop=task.stop,
        is_again=is_again,
        retry_refused=retry_refused,
        is_free=lambda error: isinstance(error, NotRestored),
    )
    try:
        link = bringup.run()
        if is_again:  # nobody waits here, so a turn that comes late is no failure
            life.io.post(lambda: life.on_established(task, link))
        else:
            life.io.call(lambda: life.on_established(task, link), timeout=max(LEAST_TURN, ends - time.monotonic()))
    except LabkitError as exc:
        if task.stop.is_set():
            raise life.not_connected() from exc
        raise


def start_recovery(
    life: Lifecycle,
    task: ConnectTask,
    settings: BrokerSettings,
    backoff: Backoff,
    failures: int,
    deadline: float | None,
    retry_refused: float,
) -> None:
    """Follow *task* on a new thread, after the pause that so many *failures* in a row call for.

    Raises:
        RuntimeError: no thread can be started.
    """
    # What the pauses have grown to goes on growing. The first one is almost none: most losses are one socket.
    grown = dataclasses.replace(backoff, jitter="none").delay(max(0, failures - 1))
    pauses = dataclasses.replace(backoff, initial=grown)

    def recover() -> None:
        if task.stop.wait(pauses.delay(0)):
            return
        try:
            seconds = UNLIMITED if deadline is None else deadline
            run_connect(life, task, settings, pauses, seconds, is_again=True, retry_refused=retry_refused)
        except Exception as exc:
            reason = exc
            life.io.post(lambda: life.on_connect_failed(task, reason))
            if not isinstance(exc, LabkitError):
                LOGGER.exception("recovery failed; the connection stays lost")

    threading.Thread(target=recover, name="labkit-recovery", daemon=True).start()


class _Reporter:
    """Hand the bring-up's events to the lifecycle, on the I/O thread."""

    def __init__(self, life: Lifecycle, task: ConnectTask) -> None:
        self._life = life
        self._task = task

    def emit(self, event: Event, /) -> None:
        life, task = self._life, self._task
        life.io.post(lambda: life.on_connect_event(task, event))


def _open_one(
    life: Lifecycle, task: ConnectTask, parameters: pika.ConnectionParameters, ends: float, *, is_again: bool
) -> Link:
    """Return an open link to one address, with every role restored on it before *ends*."""
    limit = parameters.stack_timeout
    opened, restored = PendingCall(), PendingCall()
    link = Link(life.io, life)
    has_opened = False

    def start() -> None:
        if task.stop.is_set():
            opened.settle(error=px.ConnectionOpenAborted("closed while connecting"))
            return
        link.generation = life.generation + 1
        task.restored.clear()
        task.link = link
        try:
            link.start(parameters, opened)
            if link.facts is not None:
                life.traffic.begin(link.facts)
        except Exception as exc:  # noqa: BLE001 - raised again by whoever waits
            opened.settle(error=exc)

    try:
        life.io.post(start)
        _wait(opened, limit + 1.0, "the handshake")  # Pika's own limit ends it; 1 s for a busy loop
        has_opened = True
        link.stepped_at = time.monotonic()
        life.io.post(lambda: _restore(life, task, link, restored))
        _wait_for_steps(restored, link, limit, ends)
    except BaseException as exc:
        text = f"given up: {exc!r}"
        opened.abandon()
        life.io.post(lambda: link.drop(px.ConnectionOpenAborted(text)))
        if has_opened and _is_no_refusal(exc, is_again=is_again):
            raise NotRestored(exc) from exc
        raise
    return link


def _is_no_refusal(error: BaseException, *, is_again: bool) -> bool:
    """Whether *error*, after the handshake, says nothing about the next attempt.

    What ended the link says nothing, nor, in recovery, what a role could not do: both were well before.
    """
    if isinstance(error, TimeoutError) or not isinstance(error, Exception):
        return False
    return is_again or (isinstance(error, px.AMQPConnectionError) and not isinstance(error, px.NoFreeChannels))


def _restore(life: Lifecycle, task: ConnectTask, link: Link, restored: PendingCall) -> None:
    """Restore one role after the other, those that are added meanwhile too, on the I/O thread."""
    if not link.is_open:
        restored.settle(error=link.reason)
        return
    link.on_loss = restored  # a link that ends meanwhile answers no role
    role = next(iter(life.missing(task)), None)
    if role is None:
        restored.settle()
        return
    task.restored.append(role)

    def done(told: BaseException | int) -> None:
        if isinstance(told, BaseException):
            restored.settle(error=told)
            return
        task.replayed += told
        link.stepped_at = time.monotonic()
        _restore(life, task, link, restored)

    begin_restoring(role, link, done)


def _wait(waiter: PendingCall, seconds: float, what: str) -> None:
    if not waiter.wait(seconds):
        raise TimeoutError(f"{what} took longer than {seconds:.1f} s")
    waiter.result()


def _wait_for_steps(restored: PendingCall, link: Link, limit: float, ends: float) -> None:
    """Wait until all is restored. *limit* is for a step: how many there are is the user's, and so is *ends*."""
    while not restored.wait(min(link.stepped_at + limit, ends) - time.monotonic()):
        now = time.monotonic()
        if now >= ends:
            raise TimeoutError("topology and consumers were not restored before the deadline")
        if now >= link.stepped_at + limit:
            raise TimeoutError(f"restoring what was there before: no step within {limit:.1f} s")
    restored.result()
