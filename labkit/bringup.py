"""The way from settings to one open connection: names, addresses, attempts, all under one deadline.

Pika's own bring-up has no limit on the name lookup, starts its time limit afresh for every address, and ends
at the first name that does not resolve. So we resolve the names and walk the addresses here, and hand Pika one
address at a time with the time that is left. What opens a connection to an address is an argument.
"""

import copy
import dataclasses
import ipaddress
import logging
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

import pika

from labkit.connect_errors import connect_error
from labkit.errors import ConfigurationError, ConnectError, Kind, classify, describe
from labkit.events import AttemptFailed, ConnectAttempted, ConnectionGivenUp, ConnectionOpened, Event
from labkit.retry import Backoff, Clock, call_with_retry
from labkit.second_look import Looked, second_look
from labkit.settings import BrokerSettings
from labkit.urls import join_address
from labkit.verdicts import is_tls_failure

LOGGER = logging.getLogger(__name__)
SHORTEST_LIMIT = 0.001  # seconds; Pika refuses a limit of 0

Answer = list[str] | OSError  # a resolver's


class Emitter(Protocol):
    """Where events go: a :class:`labkit.events.Dispatcher`, for example."""

    def emit(self, event: Event, /) -> None:
        """Hand *event* on; never raises."""


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
        self._fresh = None if is_again else settings.to_pika()
        self._refused: set[tuple[str, int]] = set()
        self._failure: Exception | None = None

    @property
    def failure(self) -> Exception:
        """The failure of this round that counts."""
        return self._failure or RuntimeError("there is no host to try")

    def begin_round(self) -> list[pika.ConnectionParameters]:
        """Return the hosts to try now.

        Raises:
            OSError: a TLS file that was good before cannot be used now.
        """
        self._failure = None
        hosts, self._fresh = self._fresh or self._read_again(), None
        return [each for each in hosts if (each.host, each.port) not in self._refused]

    def failed(self, parameters: pika.ConnectionParameters, error: Exception) -> None:
        """Take note of one host's *error*; raise it if the other hosts would answer the same."""
        verdict = classify(error)
        if verdict.kind is Kind.REFUSED:
            if not is_tls_failure(error):
                raise error  # the same login gets the same answer from the other hosts
            self._refused.add((parameters.host, parameters.port))
        if self._failure is None or verdict.is_retryable:
            self._failure = error  # a host that may come back counts for more than one that refused

    def _read_again(self) -> list[pika.ConnectionParameters]:
        try:
            return self._settings.to_pika()
        except ConfigurationError as exc:
            raise OSError(f"not usable at the moment: {exc}") from exc


class Bringup:
    """One way from settings to an open connection, with its deadline. Used once, by one thread.

    Nothing runs on after the deadline but, at most, a name lookup, and that holds no connection: every attempt
    to connect runs on the calling thread, with a limit that Pika keeps.

    Args:
        settings: Where to connect.
        events: Where every event goes.
        clock: Where time comes from.
        open_one: Opens a connection to one address within ``parameters.stack_timeout``.
        backoff: The pauses; None: ``settings.connection_attempts`` and ``retry_delay``, as Pika takes them.
        deadline: Seconds for everything; None: ``settings.connect_deadline``. One round over the hosts never gets
            more than the latter.
        stop: Set by another thread, it ends the pauses and the attempts after the running one.
        is_again: These settings have worked before, as :class:`Hosts` takes it.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        events: Emitter,
        clock: Clock,
        open_one: Callable[[pika.ConnectionParameters], Any],
        *,
        backoff: Backoff | None = None,
        deadline: float | None = None,
        stop: threading.Event | None = None,
        is_again: bool = False,
    ) -> None:
        self._is_again = is_again
        self._backoff = backoff or Backoff(
            initial=settings.retry_delay,
            factor=1.0,
            maximum=settings.retry_delay,
            jitter="none",
            attempts=settings.connection_attempts,
        )
        self._deadline = settings.connect_deadline if deadline is None else deadline
        self._stop = stop
        self._settings = settings
        self._events = events
        self._clock = clock
        self._open_one = open_one
        self._looked = Looked()
        self._attempts = 0
        self._tried: list[str] = []
        self._failed: AttemptFailed | None = None

    def run(self) -> Any:
        """Return what ``open_one`` opened; raise ConnectError, or one of its subclasses, with the cause."""
        settings = self._settings
        self._hosts = Hosts(settings, is_again=self._is_again)  # a TLS file that is wrong is no connect error
        self._started = self._clock.now()
        self._ends = self._started + self._deadline
        try:
            return call_with_retry(
                self._try_every_host,
                deadline=self._deadline,
                backoff=self._backoff,
                clock=self._clock,
                stop=self._stop,
                on_attempt=lambda attempt: self._report_failure(next_delay=attempt.pause),
            )
        except Exception as exc:
            raise self._give_up(exc) from exc

    def _try_every_host(self) -> Any:
        hosts = self._hosts.begin_round()
        for position, parameters in enumerate(hosts):
            if position and (self._left() <= 0 or (self._stop is not None and self._stop.is_set())):
                break
            self._report_failure(next_delay=0.0)  # the previous host's
            try:
                return self._attempt(parameters, self._share(len(hosts) - position))
            except Exception as exc:  # noqa: BLE001 - kept, and raised in the end
                self._hosts.failed(parameters, exc)
        raise self._hosts.failure

    def _attempt(self, parameters: pika.ConnectionParameters, limit: float) -> Any:
        self._attempts += 1
        place = {"host": parameters.host, "port": parameters.port, "connection": self._settings.connection_name}
        self._events.emit(ConnectAttempted(attempt=self._attempts, **place))
        address = join_address(parameters.host, parameters.port)
        if address not in self._tried:
            self._tried.append(address)
        try:
            connection = self._try_addresses(parameters, limit)
        except Exception as exc:
            self._failed = AttemptFailed(attempt=self._attempts, error=exc, **place)
            LOGGER.warning("attempt %d at %s failed: %s", self._attempts, address, describe(exc))
            raise
        seconds = self._clock.now() - self._started
        self._events.emit(ConnectionOpened(attempts=self._attempts, seconds=seconds, **place))
        return connection

    def _try_addresses(self, parameters: pika.ConnectionParameters, limit: float) -> Any:
        ends = self._clock.now() + limit
        patience = min(limit, parameters.socket_timeout or limit)
        addresses = resolve(parameters.host, parameters.port, timeout=patience)
        for index, address in enumerate(addresses):
            left = (ends - self._clock.now()) / (len(addresses) - index)
            one = for_address(parameters, address, max(SHORTEST_LIMIT, left))
            try:
                return self._open_one(one)
            except Exception as exc:  # noqa: BLE001 - raised below, or a clearer one
                looks = self._looked.wants(one, exc)
                error = second_look(one, exc, ends - self._clock.now()) if looks else exc
                last = index == len(addresses) - 1
                if last or classify(error).kind is Kind.REFUSED or self._clock.now() >= ends:
                    raise error from error.__cause__
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


def resolve(host: str, port: int, *, timeout: float) -> list[str]:
    """Return the addresses of *host*, in the system's order, each once.

    Raises:
        OSError: the name does not resolve (``socket.gaierror``), or not in time (``TimeoutError``).
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    look_up(host, port, answers.put)
    try:
        return addresses(host, answers.get(timeout=timeout))
    except queue.Empty:
        raise no_answer(host, timeout) from None


def look_up(host: str, port: int, deliver: Callable[[Answer], object]) -> None:
    """Ask for the addresses of *host*; ``deliver`` gets the answer, at once or on another thread.

    ``getaddrinfo`` has no time limit of its own, so it runs on a daemon thread that we leave behind when the
    time is over; it ends when the system's resolver does, and holds nothing.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        deliver([host])
        return

    def ask() -> None:
        try:
            records = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        except OSError as exc:
            deliver(exc)
        except UnicodeError as exc:  # a label that IDNA cannot encode: empty, or too long
            deliver(socket.gaierror(socket.EAI_NONAME, f"{host!r} is no host name: {exc}"))
        else:
            deliver(list(dict.fromkeys(str(record[4][0]) for record in records)))

    threading.Thread(target=ask, name="labkit-dns", daemon=True).start()


def addresses(host: str, answer: Answer) -> list[str]:
    """Return the addresses in *answer*, or raise the error that it is."""
    if not isinstance(answer, OSError):
        return answer
    if host == "localhost":  # some small systems have no /etc/hosts; the name means this (RFC 6761, 6.3)
        return ["127.0.0.1", "::1"]
    raise answer


def no_answer(host: str, seconds: float) -> TimeoutError:
    """Return the error for a lookup that takes longer than *seconds*."""
    return TimeoutError(f"no answer about the name {host!r} within {seconds:.1f} s")


def for_address(parameters: pika.ConnectionParameters, address: str, limit: float) -> pika.ConnectionParameters:
    """Return a copy for one address and the time that is left. The TLS name stays the host's."""
    one = copy.copy(parameters)
    one.host = address
    one.connection_attempts = 1
    one.stack_timeout = min(limit, parameters.stack_timeout or limit)
    one.socket_timeout = min(limit, parameters.socket_timeout or limit)
    return one
