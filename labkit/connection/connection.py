"""A connection for every thread: opened, used, watched and closed from anywhere, with a deadline on every wait.

What becomes of it is decided in ``labkit.connection.lifecycle``, on the I/O thread.
"""

import atexit
import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from labkit.concurrency.bell import PendingCall
from labkit.connection import io_thread
from labkit.connection.channel import Channel
from labkit.connection.channel_io import ChannelIo
from labkit.connection.lifecycle import Lifecycle
from labkit.connection.link import UNSENT_PAUSE, Link
from labkit.connection.opening import ConnectTask, Present, Recovery, run_connect
from labkit.connection.role import Role
from labkit.connection.states import State
from labkit.connection.topology_record import Topology, TopologyRecord, checked_topology
from labkit.connector.tls_session import TlsSession
from labkit.errors import ConfigurationError, DeadlineExceeded, LabkitError, NotConnected, describe
from labkit.events import Dispatcher, Listener
from labkit.printable import a_type
from labkit.retry import Backoff
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import check_type, checked_flag, checked_key, checked_number
from labkit.watched import Watched

LOGGER = logging.getLogger(__name__)
RETRY_REFUSED = 60.0  # seconds: a password that is being rotated, a virtual host that is being imported
CHANNEL_TIMEOUT = 10.0  # seconds to open a channel
SECRET_TIMEOUT = 10.0  # seconds for the broker to take a new secret
UNLIMITED = 1e9  # seconds: recovery without a time limit
CLOSE_TIMEOUT = 5.0  # seconds for the broker's close handshake
ABORT_TIMEOUT = 1.0  # seconds for a turn on the I/O thread
DROP_TIMEOUT = 1.0  # seconds beyond its deadline until close() gives up on a loop that drops no socket
EXIT_TIMEOUT = 1.5  # seconds for all connections together when the interpreter ends; 2 are promised


@dataclass(frozen=True, kw_only=True)
class ConnectionStatus:
    """A connection at one moment. ``repr`` shows what is the same on every run.

    Attributes:
        state: Where it is.
        is_open: Whether it can be used now.
        is_blocked: Whether the broker has stopped it from publishing.
        generation: How many links there have been.
        channels: Channels open now.
        reason: What ended the last link, or the last attempt; None: nothing did.
        retired: Links of this process that were given up and have not ended yet.
        lag: Seconds the I/O thread is behind, now or at its worst in the last two seconds or so.
        bytes_received: By the present link, or the last one.
        bytes_sent: By the present link, or the last one; what waits to be sent counts.
        total_bytes_received: By all links, and by attempts that failed; never less than before.
        total_bytes_sent: As *total_bytes_received*.
        protocol_state: How far AMQP's own handshake is on the newest link: INIT, PROTOCOL, START, TUNE, OPEN, CLOSING
            or CLOSED.
        server_properties: What the broker of the present link, or the last one, says of itself; None: never heard.
        connected_since: When the present link was open, in seconds since the epoch; None: it is not.
        source: The connection's number in this process, as in its events.
        tls: What TLS means on the current link; None: plain AMQP. Watch ``tls.certificate.days_left()``.
        listener_failures: How often a listener raised.
        dropped_events: Events that a slow listener was not told of.
    """

    state: State
    is_open: bool
    is_blocked: bool
    generation: int
    channels: int
    reason: BaseException | None = field(default=None, repr=False)
    retired: int = field(default=0, repr=False)
    lag: float = field(default=0.0, repr=False)
    bytes_received: int = field(default=0, repr=False)
    bytes_sent: int = field(default=0, repr=False)
    total_bytes_received: int = field(default=0, repr=False)
    total_bytes_sent: int = field(default=0, repr=False)
    protocol_state: str = field(default="CLOSED", repr=False)
    server_properties: Mapping[str, Any] | None = field(default=None, repr=False)
    connected_since: float | None = field(default=None, repr=False)
    source: int = field(default=0, repr=False)
    tls: TlsSession | None = field(default=None, repr=False)
    listener_failures: int = field(default=0, repr=False)
    dropped_events: int = field(default=0, repr=False)


class Connection:
    """One AMQP connection that any thread may use, and that says what happens to it.

    Its heartbeats are served by the I/O thread, whatever the user's threads do. ``is_open`` tells the truth: a link
    on which nothing was heard for 2 x heartbeat is lost. (With ``heartbeat=0`` there is no such watch: a dead link is
    noticed by TCP, which can take many minutes. A heartbeat function is called on the I/O thread, once a link, with
    Pika's connection and the broker's value, and must return at once; what it raises fails the connect.)

    Without *recovery* a lost connection is FAILED, and :meth:`open` may be called again. With it, it reconnects
    whatever ended the link, until it is closed, the broker has refused the login for *retry_refused* seconds, or
    ``backoff.attempts`` are used up; pauses start small again after a link that lived for 10 seconds. Channels never
    recover. A call that makes the broker end the whole connection (``get`` on a stream) costs the link each time.

    A connection that is forgotten without :meth:`close` is closed when Python collects it; one that is open when the
    interpreter ends is closed then. In a child process after a fork it is NEW, and the parent's is not touched.

    Args:
        settings: Where to connect. ``connection_attempts`` and ``retry_delay`` are Pika's own retry and not used here.
        backoff: The pauses between attempts.
        recovery: Whether to reconnect after a loss; seconds: for so long after each loss.
        retry_refused: Seconds for which recovery tries again when the login or the virtual host is refused: a password
            is being rotated, a virtual host imported. The pauses are 5 s at least, or a tenth of it if that is less, so
            that no more than ten logins are refused. 0: the first refusal ends recovery. :meth:`open` never retries.
        topology: What of that which its channels declare is declared again after a loss: "all", "none" (somebody else
            does it, or has no need), or a function of a Queue, an Exchange or a Binding that returns whether. It is
            called before each is declared, by the thread that declares it; what it raises leaves ``declare()``.
            What a :class:`labkit.Consumer` was given is the consumer's own, and is there again in any case.
        listeners: Functions that are called with every event, in order, on a thread of their own.

    Raises:
        ConfigurationError: an invalid argument. The constructor does no I/O.
    """

    _advice = "call open()"  # when it is not open
    _gives_up = True  # whether recovery ends when the attempts of the back-off are used up

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        recovery: bool | float = False,
        retry_refused: float = RETRY_REFUSED,
        topology: Topology = "all",
        listeners: Iterable[Listener] = (),
    ) -> None:
        checked_settings(settings)
        check_type("backoff", backoff, Backoff)
        self._present = Present(settings)
        self.backoff = backoff
        self.recovery = recovery if isinstance(recovery, bool) else float(checked_number("recovery", recovery))
        self.retry_refused = float(checked_number("retry_refused", retry_refused))
        self._keeps = checked_topology(topology)
        self.events = Dispatcher(listeners)
        self._io = io_thread.SHARED
        self._life = self._new_life()
        _ALL.add(self)

    def __repr__(self) -> str:
        return f"Connection({self.state.value})"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()  # raises nothing for a dead link, so the body's own exception survives

    @property
    def settings(self) -> BrokerSettings:
        """What the next attempt connects with: as given, with the secret of the last :meth:`update_secret`."""
        return self._present.settings

    @property
    def state(self) -> State:
        """Where it is now."""
        return self._life.state

    @property
    def is_open(self) -> bool:
        """Whether it can be used now. Cheap: no I/O, no lock."""
        return self._life.is_open

    @property
    def is_blocked(self) -> bool:
        """Whether the broker takes no publishes now (an alarm: memory or disk)."""
        link = self._life.link
        return link is not None and link.is_open and link.is_blocked

    @property
    def generation(self) -> int:
        """How many links there have been: 1 after the first :meth:`open`."""
        return self._life.generation

    def open(self, *, deadline: float | None = None) -> Self:
        """Connect, and return self; nothing happens if it is open. Another thread's attempt is waited for.

        Args:
            deadline: Seconds for everything: names, hosts, attempts, pauses; None: ``settings.connect_deadline``.

        Raises:
            AuthenticationFailed, AccessRefused, TlsError: the broker refused. Not retried.
            ConnectError: nothing worked in time; ``__cause__`` is the last error.
            NotConnected: it was closed meanwhile, or lost at once.
            ConfigurationError: a TLS file cannot be read.

        Emits ConnectAttempted, then AttemptFailed or ConnectionOpened; ConnectionGivenUp before it raises.
        """
        self._may_wait()
        seconds = self.settings.connect_deadline if deadline is None else float(checked_number("deadline", deadline))
        ends = time.monotonic() + seconds
        life, task = self._life, ConnectTask()
        try:
            if self._io.call(lambda: life.begin_opening(task), timeout=seconds):
                run_connect(life, task, self._present, self.backoff, seconds)
            if not self.is_open:
                life.wait_for(State.OPEN, ends - time.monotonic())
        except BaseException as exc:  # an interrupt too, wherever it came
            reason = exc
            with contextlib.suppress(LabkitError):
                # Posted, so that it is done even if its turn is late, or an interrupt comes while that is waited for.
                self._io.post(lambda: life.on_abandoned(task, reason))
                if isinstance(exc, Exception):
                    self._io.call(lambda: None, timeout=ABORT_TIMEOUT)  # after this the state is what the error says
            raise
        finally:
            life.mailbox.flush_by(ends)
        return self

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Ask the broker to close the connection; drop the socket if it does not answer within *timeout* seconds.

        What was handed over on its channels is sent first, if that takes no more than half of *timeout*; what is not
        sent is counted in a warning of the log, and by the channel's ``close()``.

        Ends an attempt to connect, and recovery. Twice is fine, from any thread; never raises for a dead link.
        """
        ends = time.monotonic() + checked_number("timeout", timeout)
        life, link = self._life, self._life.link
        try:
            if link is not None and not self._io.is_current:
                while time.monotonic() < ends - timeout / 2 and any(
                    isinstance(each, ChannelIo) and each.outbox for each in list(link.channels)
                ):
                    time.sleep(UNSENT_PAUSE)
        finally:  # also after an interrupt: it would stay open, and recover
            left = max(0.0, ends - time.monotonic())
            self._end(lambda: life.begin_closing(left), left)

    def abort(self) -> None:
        """Drop the socket without a word to the broker, which gives back what was unacknowledged."""
        self._end(self._life.begin_aborting, ABORT_TIMEOUT)

    def channel(self, *, confirm: bool = False, timeout: float = CHANNEL_TIMEOUT) -> Channel:
        """Return a new channel.

        Args:
            confirm: Whether the broker confirms each publish on it, and ``publish()`` waits for that.
            timeout: Seconds.

        Raises:
            NotConnected: it is not open; ``reason`` is what ended it.
            ChannelLost: the link ended meanwhile, or there is no free channel number.
            DeadlineExceeded: the broker did not answer within *timeout* seconds.
        """
        checked_flag("confirm", confirm)
        checked_number("timeout", timeout)
        link = self._life.link
        if link is None or not self.is_open:
            raise self._life.not_connected()
        ends = time.monotonic() + timeout
        try:
            return Channel(self, link, timeout=timeout, confirm=confirm)
        finally:
            self._life.mailbox.flush_by(ends)

    def update_secret(self, secret: str, reason: str = "", *, timeout: float = SECRET_TIMEOUT) -> None:
        """Log in with *secret* from now on: an OAuth 2 token, for example, before the present one expires.

        An open link is told (AMQP's connection.update-secret, an extension of RabbitMQ's), so that it lives on; each
        later one is opened with it, unless the settings have ``credentials``, which are asked then. Where no link is
        open nothing is sent. RabbitMQ takes the secret of a user with a password without a look at it: a wrong one
        shows at the next login.

        Args:
            secret: The new password or token. Nothing shows it.
            reason: Why, for the broker: up to 255 bytes.
            timeout: Seconds for the broker's answer. The secret is kept also if there is none.

        Raises:
            NotConnected: the link ended before the broker had answered: it may have refused the secret (530).
            DeadlineExceeded: no answer within *timeout* seconds.
            ConfigurationError: an invalid argument.
        """
        self._may_wait()
        checked_number("timeout", timeout)
        checked_key("reason", reason)
        self._present.settings = self.settings.replace(password=_checked_secret(secret))
        link, waiter = self._life.link, PendingCall()
        if link is None or not self.is_open:
            return
        self._io.post(lambda: link.update_secret(secret, reason, waiter))
        if not waiter.wait(timeout):
            raise DeadlineExceeded(f"update_secret: no answer within {timeout:g} s", deadline=timeout)
        try:
            waiter.result()
        except Exception as exc:
            raise NotConnected(f"update_secret: the link ended first: {describe(exc)}", reason=exc) from exc

    def wait_for(self, state: State, *, timeout: float) -> None:
        """Return when it is, or has been meanwhile, in *state*.

        Raises:
            NotConnected: that state can no longer be reached; said at once. ``reason`` is why.
            DeadlineExceeded: it was not reached within *timeout* seconds.
        """
        self._may_wait()
        check_type("state", state, State)
        self._life.wait_for(state, checked_number("timeout", timeout))

    def status(self) -> ConnectionStatus:
        """Return all there is to say about it at this moment. No I/O."""
        life = self._life
        link, facts, traffic = life.link, life.facts, life.traffic
        newest = traffic.latest
        return ConnectionStatus(
            state=life.state,
            is_open=life.is_open,
            is_blocked=self.is_blocked,
            generation=life.generation,
            channels=0 if link is None else len(link.channels),
            reason=life.reason,
            retired=sum(1 for each in self._io.hosted() if isinstance(each, Link) and each.is_retired),
            lag=self._io.lag,
            bytes_received=0 if facts is None else facts.bytes_received,
            bytes_sent=0 if facts is None else facts.bytes_sent,
            total_bytes_received=traffic.bytes_received,
            total_bytes_sent=traffic.bytes_sent,
            protocol_state="CLOSED" if newest is None else newest.protocol_state,
            server_properties=None if facts is None else facts.server_properties,
            connected_since=facts.opened_at if facts is not None and link is not None and link.is_open else None,
            source=life.source,
            tls=None if link is None else link.tls,
            listener_failures=self.events.failures,
            dropped_events=life.mailbox.dropped,
        )

    # For a monitor (labkit.watched), from any thread.

    def _watched(self) -> Watched:
        return Watched(connections=(self,))

    def _listen(self, listener: Listener) -> None:
        self.events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        self.events.remove(listener)

    # For labkit's own roles and pool, from any thread.

    def _add_role(self, role: Role, *, timeout: float = CHANNEL_TIMEOUT) -> None:
        """Have *role* restored on every link from now on; on the present one, if there is one, before this returns.

        Raises:
            DeadlineExceeded: it was not done within *timeout* seconds; the role stays.
            Exception: what it called ``done`` with.
        """
        life, waiter = self._life, PendingCall()
        self._io.post(lambda: life.add_role(role, waiter))
        if not waiter.wait(timeout):
            raise DeadlineExceeded(f"not restored within {timeout:g} s", deadline=timeout)
        waiter.result()

    def _retire(self, reason: Exception) -> None:
        """Give the present link up as the watchdog would: it is lost now, and its socket ends by itself."""
        link = self._life.link
        if link is not None:
            self._io.post(lambda: link.retire(reason))

    def _end(self, begin: Callable[[], None], timeout: float) -> None:
        life, ends = self._life, time.monotonic() + timeout
        if life.state is State.NEW and life.task is None:
            return
        try:
            self._io.post(begin)
            if self._io.is_current:  # a role's own code; what is waited for would never come
                return
            life.wait_for(State.CLOSED, timeout + DROP_TIMEOUT)
        except LabkitError as exc:
            LOGGER.warning("closing: %s", exc)
        life.mailbox.flush_by(ends)

    def _may_wait(self) -> None:
        self._io.may_wait()

    def _new_record(self) -> TopologyRecord:
        return TopologyRecord()

    def _new_life(self) -> Lifecycle:
        recovery = None
        if self.recovery is not False:
            backoff = self.backoff if self._gives_up else replace(self.backoff, attempts=None)
            deadline = UNLIMITED if self.recovery is True else self.recovery
            recovery = Recovery(self._present, backoff, deadline, self.retry_refused)
        return Lifecycle(
            self._io,
            self,
            name=self.settings.connection_name,
            topology=self._new_record(),
            events=self.events,
            recovery=recovery,
            advice=self._advice,
        )


def _checked_secret(secret: object) -> str:
    if isinstance(secret, str) and secret:
        return secret
    what = "empty text" if secret == "" else a_type(secret)
    allowed = "text that is not empty"
    raise ConfigurationError(f"secret: {what} is not allowed; allowed: {allowed}", field="secret", allowed=allowed)


_ALL: weakref.WeakSet[Connection] = weakref.WeakSet()
_INHERITED: list[object] = []  # what a child process must not collect: it belongs to the parent


def _at_exit() -> None:
    """Close what is open, all at once, within the time; start nothing new."""
    ends = time.monotonic() + EXIT_TIMEOUT
    lives = [each._life for each in list(_ALL) if each.state not in (State.NEW, State.CLOSED)]
    try:
        for life in lives:
            life.io.post(lambda life=life: life.begin_closing(EXIT_TIMEOUT / 2))  # type: ignore[misc]
        for life in lives:
            life.wait_for(State.CLOSED, ends - time.monotonic())
    except LabkitError as exc:
        LOGGER.debug("not closed in time: %s", exc)


def _in_child() -> None:
    """Forget everything after a fork: the threads are the parent's, and so are the links."""
    links = [each for each in io_thread.SHARED.hosted() if isinstance(each, Link)]  # also connecting and retired ones
    _INHERITED.append((io_thread.SHARED.forget(), links, [each.forget() for each in links]))
    for each in list(_ALL):
        life, each._life = each._life, each._new_life()
        life.forget()
        _INHERITED.append(life)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
