"""Bring a connection up on a thread that waits, and look names up."""

import ipaddress
import queue
import socket
from collections.abc import Callable
from typing import Any

import pika

from labkit.concurrency.threads import start_thread
from labkit.connector.login import wait_for_credentials
from labkit.connector.plan import AskLogin, Emitter, LookUp, Open, Plan, Probe, Step
from labkit.connector.probe import probe
from labkit.retry import Backoff, Clock, Stop
from labkit.settings.settings import BrokerSettings

Answer = list[str] | OSError  # a resolver's


class Bringup:
    """One way from settings to an open connection, with its deadline. Used once, by one thread.

    ``labkit.connector.plan`` says what comes next. Nothing runs on after the deadline but, at most, a name lookup, and
    that holds no connection: every attempt to connect runs on the calling thread, with a limit that Pika keeps.

    Args:
        settings: Where to connect.
        events: Where every event goes.
        clock: Where time comes from.
        open_one: Opens a connection to one address within ``parameters.stack_timeout``.
        backoff: The pauses; None: ``settings.connection_attempts`` and ``retry_delay``, as Pika takes them.
        deadline: Seconds for everything; None: ``settings.connect_deadline``. One round over the hosts never gets
            more than the latter.
        stop: Set by another thread, it ends the pauses and the attempts after the running one.
        is_again: These settings have worked before, as :class:`labkit.connector.plan.Hosts` takes it.
        retry_refused: As :class:`labkit.connector.plan.Plan` takes it.
        is_free: As :class:`labkit.connector.plan.Plan` takes it.
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
        stop: Stop | None = None,
        is_again: bool = False,
        retry_refused: float = 0.0,
        is_free: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._settings = settings
        self._events = events
        self._clock = clock
        self._open_one = open_one
        self._backoff = backoff
        self._deadline = deadline
        self._stop = stop
        self._is_again = is_again
        self._retry_refused = retry_refused
        self._is_free = is_free

    def run(self) -> Any:
        """Return what ``open_one`` opened.

        Raises:
            ConnectError: or one of its subclasses, with the cause.
            ConfigurationError: a TLS file cannot be read.
        """
        plan = Plan(
            self._settings,
            self._events,
            clock=self._clock,
            backoff=self._backoff,
            deadline=self._deadline,
            is_wanted=lambda: self._stop is None or not self._stop.is_set(),
            is_again=self._is_again,
            retry_refused=self._retry_refused,
            is_free=self._is_free,
        )
        step: Step | None = plan.begin()
        while step is not None:
            try:
                result = self._carry_out(step)
            except Exception as exc:  # noqa: BLE001 - the plan judges it
                step = plan.failed(exc)
            else:
                step = plan.succeeded(result)
        return plan.connection

    def _carry_out(self, step: Step) -> Any:
        match step:
            case AskLogin(login, seconds):
                return wait_for_credentials(login, seconds)
            case LookUp(host, port, seconds):
                return resolve(host, port, timeout=seconds)
            case Open(parameters):
                return self._open_one(parameters)
            case Probe(parameters, error, seconds):
                return probe(parameters, error, seconds)
            case _:
                return self._clock.sleep(step.seconds, self._stop)


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

    try:
        start_thread(ask, "labkit-dns")
    except OSError as exc:
        deliver(exc)


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
