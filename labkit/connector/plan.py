"""The plan of a bring-up: which address next, how much time is left, what is worth another try.

The plan takes no step itself. A driver asks for the next one, carries it out in its own way
(``labkit.connector.blocking`` waits, ``labkit.connector.coroutines`` awaits, ``labkit.connector.callbacks`` is called
back by a loop), and says what came of it. So all drivers try the same hosts in the same order, judge an error alike,
and tell the same events. Here nothing waits and nothing is sent; only the TLS files are read.

Pika's own bring-up has no limit on the name lookup, starts its time limit afresh for every address, and ends at the
first name that does not resolve. So names are resolved by a step of the plan, and Pika gets one address at a time, with
the time that is left.
"""

import copy
import dataclasses
import logging
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pika

from labkit.connector.failures import connect_error
from labkit.connector.login import LogIn
from labkit.connector.probe import ProbeOnce
from labkit.errors import ConfigurationError, ConnectError, Kind, Verdict, classify, describe
from labkit.events import AttemptFailed, ConnectAttempted, ConnectionGivenUp, ConnectionOpened, Event
from labkit.printable import printable
from labkit.retry import Backoff, Clock, Pauses, SystemClock
from labkit.settings.settings import BrokerSettings
from labkit.settings.urls import join_address
from labkit.verdicts import is_tls_failure, root_cause

LOGGER = logging.getLogger(__name__)
SHORTEST_LIMIT = 0.001  # seconds; Pika refuses a limit of 0
# Seconds between two logins that may be refused, and how many there may be: accounts are locked after some.
REFUSED_PAUSE, REFUSED_TRIES = 5.0, 10


@dataclass(frozen=True, slots=True)
class AskLogin:
    """Ask *login* for user name and password, within *seconds*: Pika's credentials, or an error of its own."""

    login: LogIn
    seconds: float


@dataclass(frozen=True, slots=True)
class LookUp:
    """Find the addresses of *host*, within *seconds*: a list of texts, or an OSError."""

    host: str
    port: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    """Open a connection; the host of *parameters* is an address, its limits are what is left."""

    parameters: pika.ConnectionParameters


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out more about *error*, which is unclear, with :func:`labkit.connector.probe.probe`: an error."""

    parameters: pika.ConnectionParameters
    error: Exception
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for *seconds*, or until nobody wants the connection any more."""

    seconds: float


Step = AskLogin | LookUp | Open | Probe | Pause
Steps = Generator[Step, Any, Any]


class Emitter(Protocol):
    """Where events go: a :class:`labkit.events.Dispatcher`, for example."""

    def emit(self, event: Event, /) -> None:
        """Hand *event* on; never raises."""


class Plan:
    """One plan of one bring-up. Used once, by one thread at a time.

    Args:
        settings: Where to connect.
        events: Where every event goes.
        clock: What time it is; the plan never sleeps on it.
        backoff: The pauses; None: ``settings.connection_attempts`` and ``retry_delay``, as Pika takes them.
        deadline: Seconds for everything; None: ``settings.connect_deadline``. One round over the hosts never gets
            more than the latter.
        is_wanted: Whether the connection is still wanted; asked before each further host and after each round.
        is_again: These settings have worked before, as :class:`Hosts` takes it.
        retry_refused: Seconds, from the first refusal in a row, for which a refused login or virtual host is tried
            again; with pauses of 5 s, or of a tenth of it, whichever is less. 0: never.
        is_free: Says of an error that it is none of the ``attempts`` of *backoff*.

    Attributes:
        hosts: The hosts, as read from the settings at first.
        connection: What the successful :class:`Open` step has opened; None before.

    Raises:
        ConfigurationError: a TLS file cannot be read or used, and *is_again* is False.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        events: Emitter,
        *,
        clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
        backoff: Backoff | None = None,
        deadline: float | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
        is_again: bool = False,
        retry_refused: float = 0.0,
        is_free: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self.hosts = Hosts(settings, is_again=is_again)
        self.connection: Any = None
        self._settings = settings
        self._events = events
        self._clock = clock
        self._backoff = backoff or Backoff(
            initial=settings.retry_delay,
            factor=1.0,
            maximum=settings.retry_delay,
            jitter="none",
            attempts=settings.connection_attempts,
        )
        self._deadline = settings.connect_deadline if deadline is None else deadline
        self._is_wanted = is_wanted
        self._retry_refused = retry_refused
        self._is_free = is_free
        self._refused_at: float | None = None  # the first refusal of those in a row
        self._login = None if settings.credentials is None else LogIn(settings)
        self._probed = ProbeOnce()
        self._attempts = 0
        self._tried: list[str] = []
        self._failed: AttemptFailed | None = None  # not told yet: the pause that follows belongs to it
        self._steps: Steps = self._all_steps()
        self._started = self._ends = clock.now()
        self._has_begun = False

    def begin(self) -> Step:
        """Return the first step; the time runs from now on."""
        self._started = self._clock.now()
        self._ends = self._started + self._deadline
        self._has_begun = True
        return next(self._steps)

    def succeeded(self, result: Any) -> Step | None:
        """Take the *result* of a step and return the next one; None: the connection is open.

        Raises:
            ConnectError: there will be no connection; its cause is the failure that counts.
        """
        return self._next(lambda: self._steps.send(result))

    def failed(self, error: Exception) -> Step | None:
        """Take what a step raised, or (``ConnectionOpenAborted``) that nobody wants the connection any more.

        Raises:
            ConnectError: there will be no connection; its cause is the failure that counts.
        """
        if not self._has_begun:
            raise self._give_up(error) from error
        return self._next(lambda: self._steps.throw(error))

    def _next(self, advance: Callable[[], Step]) -> Step | None:
        try:
            return advance()
        except StopIteration as over:
            self.connection = over.value
            return None

    def _all_steps(self) -> Steps:
        try:
            return (yield from self._rounds())
        except Exception as exc:
            error = self._give_up(exc)
            if self._is_free(exc):
                raise error from exc.__cause__  # Pika's own
            raise error from exc

    def _rounds(self) -> Steps:
        pauses = Pauses(self._backoff, clock=self._clock)
        while True:
            try:
                return (yield from self._every_host())
            except Exception as exc:  # noqa: BLE001 - judged, and raised again below
                error = exc
            pause = self._pause_after(error, pauses)
            self._report_failure(next_delay=pause)
            if pause is not None:
                yield Pause(pause)
            if pause is None or self._left() <= 0 or not self._is_wanted():
                try:
                    raise error
                finally:
                    del error  # an error whose traceback holds this frame would keep both alive

    def _pause_after(self, error: Exception, pauses: Pauses) -> float | None:
        """Return the seconds until the next round; None: there is none."""
        verdict = self._judge(error)
        if not verdict.is_retryable or not self._is_wanted():
            return None
        pause = pauses.next(
            busy=verdict.kind is Kind.BUSY, is_free=verdict.is_free, nothing_listens=self.hosts.nothing_listens
        )
        if pause is None:
            return None
        pause = max(pause, verdict.least_pause)
        return None if pause >= self._left() else pause

    def _judge(self, error: Exception) -> Verdict:
        """Return what the failure of a round means here: who was let in before may be refused for a while."""
        verdict = classify(error)
        if self._is_free(error):
            return dataclasses.replace(verdict, is_free=True)
        if verdict.kind is not Kind.REFUSED or is_tls_failure(error):
            self._refused_at = None
            return verdict
        now = self._clock.now()
        if self._refused_at is None:
            self._refused_at = now
        pause = min(REFUSED_PAUSE, self._retry_refused / REFUSED_TRIES)
        if not self._retry_refused or now + pause - self._refused_at > self._retry_refused:
            return verdict
        return dataclasses.replace(verdict, kind=Kind.BUSY, least_pause=pause)

    def _every_host(self) -> Steps:
        hosts = self.hosts.begin_round()
        for position, parameters in enumerate(hosts):
            if position and (self._left() <= 0 or not self._is_wanted()):
                break
            self._report_failure(next_delay=0.0)  # the previous host's
            try:
                return (yield from self._attempt(parameters, self._share(len(hosts) - position)))
            except Exception as exc:  # noqa: BLE001 - kept, and raised in the end
                self.hosts.failed(parameters, exc)
        raise self.hosts.failure

    def _attempt(self, parameters: pika.ConnectionParameters, limit: float) -> Steps:
        self._attempts += 1
        place = {"host": parameters.host, "port": parameters.port, "connection": self._settings.connection_name}
        self._events.emit(ConnectAttempted(attempt=self._attempts, **place))
        address = join_address(parameters.host, parameters.port)
        if address not in self._tried:
            self._tried.append(address)
        try:
            connection = yield from self._host(parameters, limit)
        except Exception as exc:
            self._failed = AttemptFailed(attempt=self._attempts, error=exc, **place)
            level = logging.INFO if classify(exc).kind is Kind.ASKED_FOR else logging.WARNING
            name = printable(self._settings.connection_name or "connection")
            LOGGER.log(level, "%s: attempt %d at %s failed: %s", name, self._attempts, address, describe(exc))
            raise
        seconds = self._clock.now() - self._started
        self._events.emit(ConnectionOpened(attempts=self._attempts, seconds=seconds, **place))
        return connection

    def _host(self, parameters: pika.ConnectionParameters, limit: float) -> Steps:
        ends = self._clock.now() + limit
        if self._login is not None:  # for each attempt: a password that was rotated meanwhile is used by the next
            parameters = copy.copy(parameters)
            parameters.credentials = yield AskLogin(self._login, limit)
        return (yield from self._every_address(parameters, ends))

    def _every_address(self, parameters: pika.ConnectionParameters, ends: float) -> Steps:
        limit = max(SHORTEST_LIMIT, ends - self._clock.now())
        patience = min(limit, parameters.socket_timeout or limit)
        addresses: Sequence[str] = yield LookUp(parameters.host, parameters.port, patience)
        for index, address in enumerate(addresses):
            left = ends - self._clock.now()
            if left <= 0:
                raise TimeoutError(f"no time is left to connect to {parameters.host!r}: its name took too long")
            one = for_address(parameters, address, max(SHORTEST_LIMIT, left / (len(addresses) - index)))
            try:
                return (yield Open(one))
            except Exception as exc:  # noqa: BLE001 - raised below, or a clearer one
                error = exc
            if self._probed.claim(one, error):
                error = yield Probe(one, error, ends - self._clock.now())
            last = index == len(addresses) - 1
            if last or classify(error).kind in (Kind.REFUSED, Kind.ASKED_FOR) or self._clock.now() >= ends:
                try:
                    raise error from error.__cause__
                finally:
                    del error
        raise OSError(f"the name {parameters.host!r} has no address")

    def _left(self) -> float:
        return self._ends - self._clock.now()

    def _share(self, hosts: int) -> float:
        """Seconds for the next of so many hosts: a silent first one must leave time for the others."""
        return max(SHORTEST_LIMIT, min(self._left(), self._settings.connect_deadline) / hosts)

    def _report_failure(self, *, next_delay: float | None) -> None:
        if self._failed is not None:
            failed, self._failed = self._failed, None
            self._events.emit(dataclasses.replace(failed, next_delay=next_delay))

    def _give_up(self, cause: Exception) -> ConnectError:
        elapsed = self._clock.now() - self._started
        error = connect_error(
            cause,
            hosts=self._tried,
            attempts=self._attempts,
            elapsed=elapsed,
            shows_certificate=self._settings.shows_certificate,
        )
        self._events.emit(
            ConnectionGivenUp(
                attempts=self._attempts, error=error, seconds=elapsed, connection=self._settings.connection_name
            )
        )
        return error


class Hosts:
    """Which hosts are worth another question, and whose failure counts.

    Their TLS files are read for every round, so that a certificate that was renewed meanwhile is used; nothing else
    here does I/O.

    Args:
        settings: Where to connect.
        is_again: These settings have worked before: what is wrong with a file now is somebody writing it, and passes.

    Raises:
        ConfigurationError: a TLS file cannot be read or used, and *is_again* is False.
    """

    def __init__(self, settings: BrokerSettings, *, is_again: bool = False) -> None:
        self._settings = settings
        self._fresh = None if is_again else settings.to_pika(ask=False)
        self._refused: set[tuple[str, int]] = set()
        self._failure: Exception | None = None
        self._closed_ports: list[bool] = []  # of the hosts of this round that failed

    @property
    def nothing_listens(self) -> bool:
        """Whether nothing listens at any host that this round has tried."""
        return bool(self._closed_ports) and all(self._closed_ports)

    @property
    def first(self) -> pika.ConnectionParameters:
        """The host that the first round begins with."""
        return (self._fresh or self._settings.to_pika(ask=False))[0]

    @property
    def failure(self) -> Exception:
        """The failure of this round that counts."""
        return self._failure or RuntimeError("there is no host to try")

    def begin_round(self) -> list[pika.ConnectionParameters]:
        """Return the hosts to try now, in that order; one that the settings name twice once.

        Raises:
            OSError: a TLS file that was good before cannot be used now.
        """
        self._failure, self._closed_ports = None, []
        hosts, self._fresh = self._fresh or self._read_again(), None
        places = {(each.host, each.port): each for each in hosts}
        wanted = [each for place, each in places.items() if place not in self._refused]
        if self._settings.host_order == "shuffled":
            random.shuffle(wanted)
        return wanted

    def failed(self, parameters: pika.ConnectionParameters, error: Exception) -> None:
        """Take note of one host's *error*; raise it if the other hosts need not be asked."""
        self._closed_ports.append(isinstance(root_cause(error), ConnectionRefusedError))
        verdict = classify(error)
        if verdict.kind is Kind.ASKED_FOR:
            raise error
        if verdict.kind is Kind.REFUSED:
            if not is_tls_failure(error):
                raise error  # the same login gets the same answer from the other hosts
            self._refused.add((parameters.host, parameters.port))
        if self._failure is None or verdict.is_retryable:
            self._failure = error  # a host that may come back counts for more than one that refused

    def _read_again(self) -> list[pika.ConnectionParameters]:
        try:
            return self._settings.to_pika(ask=False)
        except ConfigurationError as exc:
            raise OSError(f"not usable at the moment: {exc}") from exc


def for_address(parameters: pika.ConnectionParameters, address: str, limit: float) -> pika.ConnectionParameters:
    """Return a copy for one address and the time that is left. The TLS name stays the host's."""
    one = copy.copy(parameters)
    one.host = address
    one.connection_attempts = 1
    one.stack_timeout = min(limit, parameters.stack_timeout or limit)
    one.socket_timeout = min(limit, parameters.socket_timeout or limit)
    return one
