"""What every broker can be told, whatever runs it. The backends (local, compose, remote) fill it in."""

import atexit
import contextlib
import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from labkit.brokers.administration import Administration
from labkit.brokers.management import segment
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings
from labkit.values import check_type, checked_count, checked_flag, checked_name, checked_number, refused

START_TIMEOUT = 60.0  # seconds to a whole AMQP handshake; 3-6 s on an idle machine
STOP_TIMEOUT = 30.0  # seconds for a graceful stop; RabbitMQ 3.10 takes 6
LOG_LINES_MAX = 10**6
CTL_TIMEOUT = 30.0  # seconds for one rabbitmqctl; each boots an Erlang VM (0.5-0.8 s)
CLOSE_ANSWERED = "closed"  # RabbitMQ's word for a connection whose Close it has answered
CONNECTION_COLUMNS = ("name", "client_properties", "vhost", "user", "state", "channels")

# The memory watermark in force, and the one the broker was configured with.
MEASURE_WATERMARK = (
    "{ok, D} = application:get_env(rabbit, vm_memory_high_watermark), "
    "W = vm_memory_monitor:get_vm_memory_high_watermark(), "
    "vm_memory_monitor:set_vm_memory_high_watermark(0.0), {W, D}."
)
CONFIGURED_WATERMARK = (
    "{ok, D} = application:get_env(rabbit, vm_memory_high_watermark), "
    "vm_memory_monitor:set_vm_memory_high_watermark(D)."
)

# Of the connections themselves: the list that close_all_connections goes by is made of events, and may be late.
CLOSE_CONNECTIONS = (
    "Where = {where}, Here = fun(P) -> "
    "try [{{vhost, V}}, {{state, S}}] = rabbit_networking:connection_info(P, [vhost, state]), "
    "is_binary(V) andalso S =/= {answered} andalso (Where =:= all orelse V =:= Where) catch _:_ -> false end end, "
    "Found = lists:filter(Here, rabbit_networking:connections()), "
    "[rabbit_networking:close_connection(P, {reason}) || P <- Found], length(Found)."
)


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One client connection as the broker sees it."""

    name: str  # the broker's own name for it: addresses and ports
    client_name: str  # the connection_name that the client gave, or ""
    virtual_host: str
    username: str
    state: str
    channels: int

    def __repr__(self) -> str:
        """Show what stays the same from run to run; ``name`` holds ports and is left out."""
        return (
            f"ConnectionInfo(client_name={self.client_name!r}, virtual_host={self.virtual_host!r}, "
            f"username={self.username!r}, state={self.state!r}, channels={self.channels})"
        )


class Broker(Administration, ABC):
    """One RabbitMQ of the bench, and the verbs to watch it and to break it.

    Thread-safe: verbs that change the process take turns across threads and processes. A verb that
    the backend has no means for raises BrokerError; ``capabilities`` says beforehand:
    "process" (start, stop, restart, kill, pause, resume), "alarm", "management", "logs", "tls" (a TLS
    listener with the lab's certificates).
    """

    backend: ClassVar[str]

    def __init__(self, home: Path | None) -> None:
        self.home = home
        self._scope: str | None = None
        self._alarms: set[str] = set()  # what undoes an alarm that is on now

    def __repr__(self) -> str:
        scope = f", virtual_host={self._scope!r}" if self._scope is not None else ""
        return f"<Broker {self.backend}{scope}>"

    # --- what a backend fills in ---------------------------------------------------------------

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[str]:
        """What this broker can be told to do."""

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether its process lives; a paused one does."""

    @property
    @abstractmethod
    def is_paused(self) -> bool:
        """Whether its process is frozen."""

    def _tls_settings(self) -> BrokerSettings:
        """Settings of the default virtual host over TLS."""
        raise self._cannot("speak TLS")

    def rotate_certificate(self) -> None:
        """Give the TLS listener a new certificate while it runs; open connections stay as they are."""
        raise self._cannot("rotate_certificate")

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start it, on the ports it had, and return once it answers an AMQP handshake.

        Raises:
            BrokerError: it ended, or was not ready after *timeout* seconds.
        """
        raise self._cannot(f"start within {checked_number('timeout', timeout):g} s")

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it gracefully: clients are told 320 CONNECTION_FORCED. A paused one is resumed first."""
        raise self._cannot(f"stop within {checked_number('timeout', timeout):g} s")

    def kill(self) -> None:
        """End its process without a word to anyone (SIGKILL)."""
        raise self._cannot("kill")

    def pause(self) -> None:
        """Freeze its process: connections stay open and say nothing."""
        raise self._cannot("pause")

    def resume(self) -> None:
        """Let a paused process go on; no harm to one that is not paused."""
        raise self._cannot("resume")

    def logs(self, lines: int = 50) -> str:
        """Return the last *lines* lines of the broker's log."""
        raise self._cannot(f"logs({checked_count('lines', lines, LOG_LINES_MAX)})")

    def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl -q`` with *arguments* on this broker and return what it printed.

        Raises:
            BrokerError: it failed, took longer than *timeout* seconds, or there is none here.
        """
        check_ctl(arguments, timeout)
        raise self._cannot(f"rabbitmqctl {' '.join(arguments)} within {timeout:g} s")

    def throw_away(self) -> None:
        """End it and remove what it left: data, containers, port mapper, state file."""
        raise self._cannot("throw_away")

    # --- the same for all ----------------------------------------------------------------------

    def restart(self, timeout: float = START_TIMEOUT) -> None:
        """Stop gracefully, start again on the same ports, and return once it is ready."""
        checked_number("timeout", timeout)
        self.stop()
        self.start(timeout)

    def settings(self, virtual_host: str | None = None, *, tls: bool = False) -> BrokerSettings:
        """Return settings for *virtual_host*; None means the scope's own, or "/" without a scope.

        Args:
            virtual_host: Which one.
            tls: For the TLS listener: the broker's certificate is verified against the lab's authority.

        Raises:
            BrokerError: TLS was asked for and this broker has none.
        """
        settings = self._tls_settings() if checked_flag("tls", tls) else self._base_settings()
        return settings.replace(virtual_host=self._virtual_host(virtual_host) or "/")

    def scoped(self, virtual_host: str) -> Self:
        """Return this broker as seen from *virtual_host*: what lists or closes connections stays inside it."""
        view = copy.copy(self)
        view._scope = checked_name("virtual_host", virtual_host)
        return view

    @property
    def version(self) -> str:
        """RabbitMQ's version, as "4.3.6"."""
        return str(self._api().get("overview")["rabbitmq_version"])

    def connections(self, virtual_host: str | None = None) -> list[ConnectionInfo]:
        """Return the client connections that are open now, oldest name first.

        One whose close handshake is over is not open, though the broker may keep it in its list for half a minute:
        until it hears that the socket is closed, which it may miss.

        Args:
            virtual_host: Only those in it; None means the scope's own, or all without a scope.
        """
        wanted = self._virtual_host(virtual_host)
        listed = [each for each in self._list_connections() if wanted in {None, each.virtual_host}]
        shown = [each for each in listed if each.state != CLOSE_ANSWERED]
        return sorted(shown, key=lambda each: (each.client_name, each.name))

    def wait_for_connections(
        self, count: int, virtual_host: str | None = None, *, timeout: float = 5.0
    ) -> list[ConnectionInfo]:
        """Return the open connections as soon as there are *count* of them, or as they are after *timeout* seconds."""
        checked_number("count", count, whole=True)
        deadline = time.monotonic() + checked_number("timeout", timeout)
        while True:
            seen = self.connections(virtual_host)
            if len(seen) == count or time.monotonic() > deadline:
                return seen
            time.sleep(0.05)

    def close_connections(self, reason: str = "closed by the lab", virtual_host: str | None = None) -> int:
        """Have the broker close connections; each client is told 320 "CONNECTION_FORCED - *reason*".

        Args:
            reason: The words the client reads.
            virtual_host: Only those in it; None means the scope's own, or all without a scope.

        Returns:
            How many were closed.
        """
        check_type("reason", reason, str)
        return self._close_connections(reason, self._virtual_host(virtual_host))

    def count_connections(self, virtual_host: str | None = None) -> int:
        """Return how many client connections are open now; for loops that wait, 20 times faster than the list."""
        return len(self._tracked(self._virtual_host(virtual_host)))

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Put the memory alarm on for the length of the block.

        A publishing client is told ``connection.blocked`` at its next publish. The watermark that
        was in force is measured first and put back afterwards, also when the interpreter exits inside
        the block.

        Raises:
            BrokerError: this backend has no means to; at the end of the block the broker is paused, or does not answer.
                Then the alarm stays on, until :meth:`clear_alarm`.
        """
        if "alarm" not in self.capabilities:
            raise self._cannot("alarm")
        at_exit = self._undo_alarm
        undo = CONFIGURED_WATERMARK  # until we know better: an interrupt may come when the alarm is on already
        self._alarms.add(undo)
        atexit.register(at_exit)
        try:
            measured = restoring(self.ctl("eval", MEASURE_WATERMARK))
            self._alarms.add(measured)
            self._alarms.discard(undo)
            undo = measured
            yield
        finally:
            self._end_alarm(undo)
            atexit.unregister(at_exit)
            self._alarms.discard(undo)

    @property
    def has_alarm(self) -> bool:
        """Whether a memory or disk alarm is on now, on any node: the broker takes no publishes then.

        Raises:
            BrokerError: the management API does not answer, or not this user.
        """
        return not self._api().passes("health/checks/alarms")

    def clear_alarm(self) -> None:
        """Put the memory watermark back to the configured one, whoever changed it."""
        self.ctl("eval", CONFIGURED_WATERMARK)

    # --- helpers -------------------------------------------------------------------------------

    def _end_alarm(self, undo: str) -> None:
        # A lab may have stopped or killed the broker inside the block; it comes back unalarmed.
        if not self.is_running:
            return
        if self.is_paused:
            raise BrokerError("the broker is paused, and its memory alarm stays on: resume() it, then clear_alarm()")
        try:
            self.ctl("eval", undo)
        except BaseException as exc:
            if not isinstance(exc, Exception):  # an interrupt ends rabbitmqctl, and everybody's publishes wait
                self.ctl("eval", undo)
            raise

    def _undo_alarm(self) -> None:
        with contextlib.suppress(BrokerError):
            for undo in sorted(self._alarms):
                self.ctl("eval", undo, timeout=5.0)

    def _virtual_host(self, asked: str | None) -> str | None:
        return checked_name("virtual_host", asked) if asked is not None else self._scope

    def _list_connections(self) -> list[ConnectionInfo]:
        shown = json.loads(self.ctl("list_connections", *CONNECTION_COLUMNS, "--formatter", "json") or "[]")
        return [connection_info(each) for each in shown]

    def _close_connections(self, reason: str, virtual_host: str | None) -> int:
        where = "all" if virtual_host is None else _in_erlang(virtual_host)
        told = CLOSE_CONNECTIONS.format(where=where, answered=CLOSE_ANSWERED, reason=_in_erlang(reason))
        return int(self.ctl("eval", told))

    def _tracked(self, virtual_host: str | None) -> list[dict[str, Any]]:
        """Return what the API says of the connections open now: name, virtual host and user, no more.

        Asked user by user, because that list alone is up to date: /api/connections lags by a statistics tick.
        """
        api = self._api()
        listed = [each for user in self.users() for each in api.get(f"connections/username/{segment(user)}") or []]
        return [each for each in listed if virtual_host in {None, each["vhost"]}]

    def _cannot(self, verb: str) -> BrokerError:
        able = ", ".join(sorted(self.capabilities)) or "nothing"
        return BrokerError(f"a {self.backend} broker cannot {verb}: its capabilities are {able}")


def connection_info(shown: dict[str, Any]) -> ConnectionInfo:
    """Return a connection from what rabbitmqctl or the management API shows of it.

    Of a client that is still in its handshake, rabbitmqctl shows the text "none" for what it does not know yet.
    """
    properties = shown.get("client_properties") or {}
    if isinstance(properties, list):  # rabbitmqctl shows an AMQP table: [name, type, value] for each
        properties = {each[0]: each[-1] for each in properties}
    given = properties.get("connection_name") if isinstance(properties, dict) else None
    channels = shown.get("channels")
    return ConnectionInfo(
        name=str(shown.get("name", "")),
        client_name=given if isinstance(given, str) else "",
        virtual_host=str(shown.get("vhost", "")),
        username=str(shown.get("user", "")),
        state=str(shown.get("state", "")),
        channels=channels if isinstance(channels, int) else 0,
    )


def check_ctl(arguments: tuple[str, ...], timeout: float) -> None:
    """Raise ConfigurationError unless these can be a command of rabbitmqctl's and the seconds for it."""
    checked_number("timeout", timeout)
    if not arguments:
        raise refused("arguments", None, "a command of rabbitmqctl's, and what it takes")
    for each in arguments:
        check_type("arguments", each, str)


def _in_erlang(text: str) -> str:
    """Return *text* as an Erlang binary, whatever is in it."""
    return f"<<{','.join(str(byte) for byte in text.encode())}>>"


def restoring(measured: str) -> str:
    """Return the Erlang expression that puts back the watermark *measured* ("{in force, configured}").

    In force is 0 where somebody left an alarm on: then the configured one is right.
    """
    return (
        f"case {measured.strip()} of {{Z, D}} when Z == 0 -> vm_memory_monitor:set_vm_memory_high_watermark(D); "
        "{W, _} -> vm_memory_monitor:set_vm_memory_high_watermark(W) end."
    )
