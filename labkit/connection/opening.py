"""Bring a connection up on a thread that may wait: the caller of ``open()``, or a recovery's own.

The thread walks hosts and addresses (``labkit.connector.blocking``), and waits. All else is done on the I/O thread, by
``labkit.connection.lifecycle``, which it asks and tells: see :class:`Asked`.
"""

import copy
import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import pika
import pika.exceptions as px

from labkit.concurrency.bell import Flag, PendingCall
from labkit.connection.blame import kind_of_loss
from labkit.connection.io_thread import IoThread
from labkit.connection.link import Link
from labkit.connection.role import Restored
from labkit.connector.blocking import Bringup
from labkit.errors import LabkitError, NotConnected, describe
from labkit.events import ConnectionOpened, Event
from labkit.retry import Backoff, SystemClock
from labkit.settings.settings import BrokerSettings

LOGGER = logging.getLogger(__name__)
LEAST_TURN = 0.25  # seconds for a turn on the I/O thread, also when the deadline is nearer


@dataclass(slots=True)
class Present:
    """What the next attempt connects with: it is read here, so that recovery does not keep the connection alive."""

    settings: BrokerSettings


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a lost link is replaced.

    Attributes:
        present: Where to connect.
        backoff: The pauses, from the first one on.
        deadline: Seconds for it, after each loss.
        retry_refused: Seconds for which a refused login is tried again.
    """

    present: Present
    backoff: Backoff
    deadline: float
    retry_refused: float


class ConnectTask:
    """One bring-up under way: what ends it early, the link it is trying, and what it reported at its end."""

    def __init__(self) -> None:
        self.stop = Flag()
        self.thread: int | None = None  # which follows it
        self.link: Link | None = None
        self.opened: ConnectionOpened | None = None
        self.restored = Restored()

    def begin_attempt(self, link: Link) -> None:
        """Try *link* now, on which nothing is restored yet."""
        self.link = link
        self.restored.roles.clear()

    def abort(self, reason: str) -> None:
        """End it: no further attempt, and the running one fails now."""
        self.stop.set()
        if self.link is not None:
            self.link.drop(px.ConnectionOpenAborted(reason))


class Asked(Protocol):
    """Who does what needs the I/O thread, and decides what follows: the lifecycle. All but ``io`` on that thread."""

    io: IoThread

    def begin_attempt(self, task: ConnectTask, parameters: pika.ConnectionParameters, opened: PendingCall) -> None:
        """Begin to open a link to one address; *opened* gets it, or the error."""

    def begin_restoring(self, task: ConnectTask, link: Link, restored: PendingCall) -> None:
        """Begin to restore every role on *link*; settle *restored* when that is done, or with the error."""

    def on_attempt_failed(self, task: ConnectTask, reason: Exception) -> None:
        """The attempt under way is given up."""

    def on_connect_event(self, task: ConnectTask, event: Event) -> None:
        """The bring-up has something to tell."""

    def on_established(self, task: ConnectTask, link: Link) -> None:
        """*link* is open, and every role is restored on it."""

    def on_connect_failed(self, task: ConnectTask, reason: BaseException) -> None:
        """Recovery has ended without a link."""

    def not_connected(self) -> NotConnected:
        """Return the error for using the connection now."""


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
    life: Asked,
    task: ConnectTask,
    present: Present,
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
        present: Where to connect; each attempt logs in with the secret that is there by then.
        backoff: The pauses.
        deadline: Seconds.
        is_again: Recovery: it was open before, with these settings, and nobody waits.
        retry_refused: Seconds for which a refused login is tried again; recovery only.

    Raises:
        ConnectError: nothing worked in time, or the broker refused.
        NotConnected: it was closed meanwhile.
        ConfigurationError: a TLS file cannot be read.
    """
    task.thread = threading.get_ident()
    ends = time.monotonic() + deadline

    def open_with_secret(parameters: pika.ConnectionParameters) -> Link:
        this = _with_secret(parameters, present)
        try:
            return _open_one(life, task, this, ends, is_again=is_again)
        except px.ProbableAuthenticationError as exc:
            if this.credentials == _with_secret(parameters, present).credentials:
                raise
            # Says nothing of the newer one, with which the next attempt logs in.
            raise ConnectionError(f"refused with a secret that has been replaced since: {describe(exc)}") from None

    bringup = Bringup(
        present.settings,
        _Reporter(life, task),
        SystemClock(),
        open_with_secret,
        backoff=backoff,
        deadline=deadline,
        stop=task.stop,
        is_again=is_again,
        retry_refused=retry_refused,
        is_free=lambda error: isinstance(error, NotRestored),
    )
    try:
        link = bringup.run()

        def established() -> None:
            life.on_established(task, link)
            _tell_newer_secret(link, present)  # from here on each new secret is told to the open link

        if is_again:  # nobody waits here, so a turn that comes late is no failure
            life.io.post(established)
        else:
            life.io.call(established, timeout=max(LEAST_TURN, ends - time.monotonic()))
    except LabkitError as exc:
        if task.stop.is_set():
            raise life.not_connected() from exc
        raise


def start_recovery(life: Asked, task: ConnectTask, recovery: Recovery) -> None:
    """Follow *task* on a new thread, after the first pause.

    Raises:
        RuntimeError: no thread can be started.
    """

    def recover() -> None:
        if task.stop.wait(recovery.backoff.delay(0)):
            return
        try:
            run_connect(
                life,
                task,
                recovery.present,
                recovery.backoff,
                recovery.deadline,
                is_again=True,
                retry_refused=recovery.retry_refused,
            )
        except Exception as exc:
            reason = exc
            life.io.post(lambda: life.on_connect_failed(task, reason))
            if not isinstance(exc, LabkitError):
                LOGGER.exception("recovery failed; the connection stays lost")

    threading.Thread(target=recover, name="labkit-recovery", daemon=True).start()


class _Reporter:
    """Hand the bring-up's events to the lifecycle, on the I/O thread."""

    def __init__(self, life: Asked, task: ConnectTask) -> None:
        self._life = life
        self._task = task

    def emit(self, event: Event, /) -> None:
        life, task = self._life, self._task
        life.io.post(lambda: life.on_connect_event(task, event))


def _with_secret(parameters: pika.ConnectionParameters, present: Present) -> pika.ConnectionParameters:
    """Return *parameters* with the present secret: a recovery may have begun hours before that came."""
    if not _logs_in_with_the_secret(present.settings):
        return parameters
    parameters = copy.copy(parameters)
    parameters.credentials = present.settings.ask_credentials()
    return parameters


def _tell_newer_secret(link: Link, present: Present) -> None:
    """Give *link* the secret that came while it logged in with the one before."""
    settings, connection = present.settings, link.connection
    if link.is_open and connection is not None and _logs_in_with_the_secret(settings):
        newer = settings.ask_credentials()
        if newer != connection.params.credentials:
            link.update_secret(newer.password, "", PendingCall())


def _logs_in_with_the_secret(settings: BrokerSettings) -> bool:
    return settings.credentials is None and settings.auth_mechanism != "EXTERNAL"


def _open_one(
    life: Asked, task: ConnectTask, parameters: pika.ConnectionParameters, ends: float, *, is_again: bool
) -> Link:
    """Return an open link to one address, with every role restored on it before *ends*."""
    limit = parameters.stack_timeout
    opened, restored = PendingCall(), PendingCall()
    has_opened = False
    try:
        life.io.post(lambda: life.begin_attempt(task, parameters, opened))
        link = _wait(opened, limit + 1.0, "the handshake")  # Pika's own limit ends it; 1 s for a busy loop
        has_opened = True
        link.note_step()
        life.io.post(lambda: life.begin_restoring(task, link, restored))
        _wait_for_steps(restored, link, limit, ends)
    except BaseException as exc:
        reason = px.ConnectionOpenAborted(f"given up: {exc!r}")
        opened.abandon()
        life.io.post(lambda: life.on_attempt_failed(task, reason))
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


def _wait(opened: PendingCall, seconds: float, what: str) -> Link:
    if not opened.wait(seconds):
        raise TimeoutError(f"{what} took longer than {seconds:.1f} s")
    link: Link = opened.result()
    return link


def _wait_for_steps(restored: PendingCall, link: Link, limit: float, ends: float) -> None:
    """Wait until all is restored. *limit* is for a step: how many there are is the user's, and so is *ends*."""
    while not restored.wait(min(link.stepped_at + limit, ends) - time.monotonic()):
        now = time.monotonic()
        if now >= ends:
            raise TimeoutError("topology and consumers were not restored before the deadline")
        if now >= link.stepped_at + limit:
            raise TimeoutError(f"restoring what was there before: no step within {limit:.1f} s")
    restored.result()
