"""Read what is watched: labkit's connections say it themselves; of Pika's own, the socket is looked at, too.

Reading does no I/O that could wait, and is allowed on any thread.
"""

import time
from typing import Any

from labkit.connection.connection import Connection
from labkit.connector.facts import LinkFacts, Traffic
from labkit.monitor.peek import NOTHING, Peek, peek
from labkit.monitor.status import LinkStatus

CLOSED_BY_US = "ConnectionClosedByClient"  # Pika's class of reason when this side has closed it


def read_connection(connection: Connection) -> LinkStatus:
    """Return what a ``labkit.Connection`` says of itself."""
    now = connection.status()
    return LinkStatus(
        is_open=now.is_open,
        protocol_state=now.protocol_state,
        server_properties=now.server_properties or {},
        bytes_sent=now.bytes_sent,
        bytes_received=now.bytes_received,
        state=now.state.value,
        is_blocked=now.is_blocked,
        generation=now.generation,
        last_error=now.reason,
        connected_since=now.connected_since,
        lag=now.lag,
        certificate_days=_days(now.tls),
        name=connection.settings.connection_name,
    )


class PikaTarget:
    """The links of one owner of Pika's connections, one after the other: mostly there is one.

    Nobody but this watches them for silence. A link is silent when nothing was heard for 2 x heartbeat: RabbitMQ sends
    two in each. What waits unread in the socket was heard, though Pika has not taken it yet.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._heard: tuple[LinkFacts | None, int, float] = None, -1, 0.0  # link, bytes so far, when
        self._opened: LinkFacts | None = None  # the last link that was seen open
        self._seen = ""  # the protocol state at the last look

    @property
    def needs_looks(self) -> bool:
        """Whether looking often tells something: of an open link that has heartbeats its silence, then its end."""
        facts = self._traffic.latest
        return facts is not None and facts.heartbeat > 0 and "OPEN" in (self._seen, facts.protocol_state)

    @property
    def heartbeat(self) -> float:
        """Seconds; 0: none."""
        facts = self._traffic.latest
        return 0.0 if facts is None else facts.heartbeat

    def read(self) -> tuple[LinkStatus, str | None]:
        """Return the status, and why the link is lost; None: it is not, or this side has closed it."""
        facts = self._traffic.latest
        if facts is None:
            return LinkStatus(is_open=False, protocol_state="CLOSED", state="new"), None
        state, found, now = facts.protocol_state, NOTHING, time.monotonic()
        lost, heard_ago = self._ended(facts, state), None
        self._seen = state
        if state == "OPEN":
            self._opened = facts
            found = peek(facts.wire)
            heard_ago = self._silence(facts, found, now)
            if found.ended is not None:
                lost, state = found.ended, "CLOSED"
            elif facts.heartbeat and heard_ago > 2 * facts.heartbeat:
                lost = f"nothing was received for {2 * facts.heartbeat:g} s (2 x heartbeat)"
        is_open = state == "OPEN" and lost is None
        params = getattr(facts.wire, "params", None)
        properties = getattr(params, "client_properties", None) or {}
        status = LinkStatus(
            is_open=is_open,
            protocol_state=state,
            server_properties=facts.server_properties or {},
            bytes_sent=facts.bytes_sent,
            bytes_received=facts.bytes_received,
            state="lost" if lost is not None else state.lower(),
            is_blocked=is_open
            and (facts.blocked_for is not None if found.blocked_for is None else found.blocked_for != ""),
            generation=self._traffic.generation if facts.opened_at is not None else self._traffic.generation - 1,
            last_error=facts.reason,
            connected_since=facts.opened_at if is_open else None,
            certificate_days=_days(facts.tls),
            heard_ago=heard_ago,
            name=properties.get("connection_name"),
        )
        return status, lost

    def _ended(self, facts: LinkFacts, state: str) -> str | None:
        if facts.reason is not None:
            is_ours = type(facts.reason).__name__ == CLOSED_BY_US
            return None if is_ours else f"{type(facts.reason).__name__}: {facts.reason}"
        if state == "CLOSED" and self._opened is facts and facts.wire is not None:
            return "it has ended, and nobody said why"
        return None

    def _silence(self, facts: LinkFacts, found: Peek, now: float) -> float:
        """Return the seconds since something more was heard. From any thread: what is kept is changed in one step."""
        count = facts.bytes_received + found.waiting
        link, before, at = self._heard
        if link is not facts or count != before or found.is_full:
            self._heard = facts, count, now
            return 0.0
        return now - at


def _days(tls: Any) -> float | None:
    return None if tls is None or tls.certificate is None else float(tls.certificate.days_left())
