"""What a monitor says of what it watches, as values: one connection, and all of them together. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from labkit.monitor.alerts import Alert

NO_COUNTERS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class LinkStatus:
    """One connection at one moment. ``repr`` shows what is the same on every run.

    Attributes:
        is_open: Whether it can be used now.
        protocol_state: How far AMQP's handshake is: INIT, PROTOCOL, START, TUNE, OPEN, CLOSING or CLOSED.
        server_properties: What the broker of the present link, or the last one, says of itself; empty: never heard.
        bytes_sent: By the present link, or the last one; what waits to be sent counts.
        bytes_received: By the present link, or the last one.
        state: In labkit's words (``labkit.State``): "open", "waiting" ...; of one of Pika's: the protocol's, in small.
        is_blocked: Whether the broker takes no publishes now.
        generation: How many links there have been.
        last_error: What ended the last link, or the last attempt; None: nothing did.
        connected_since: Seconds since the epoch; None: it is not open.
        lag: Seconds that the I/O thread is behind; None: the loop is not labkit's.
        certificate_days: Days until the broker's certificate is out of date; None: no TLS, or never open.
        heard_ago: Seconds since something was received, as far as the monitor has looked; None: it need not look.
        name: The connection's name.
    """

    is_open: bool
    protocol_state: str
    server_properties: Mapping[str, Any] = field(default_factory=dict, repr=False)
    bytes_sent: int = field(default=0, repr=False)
    bytes_received: int = field(default=0, repr=False)
    state: str
    is_blocked: bool = False
    generation: int = 0
    last_error: BaseException | None = field(default=None, repr=False)
    connected_since: float | None = field(default=None, repr=False)
    lag: float | None = field(default=None, repr=False)
    certificate_days: float | None = field(default=None, repr=False)
    heard_ago: float | None = field(default=None, repr=False)
    name: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class MonitorStatus(LinkStatus):
    """Everything that is watched, at one moment.

    With several connections (a pool, a manager) ``is_open`` means all of those that there are, bytes are sums,
    ``certificate_days`` is the least and ``lag`` the most; the rest is said of the first that is not open, or else of
    the first.

    Attributes:
        connections: Each of them.
        counters: What was counted over all links, by the names of ``labkit.monitor.table``: bytes, messages, losses. A
            lost link sets none of them back.
        alerts: What is wrong now.
    """

    connections: tuple[LinkStatus, ...] = field(default=(), repr=False)
    counters: Mapping[str, float] = field(default_factory=dict, repr=False)
    alerts: tuple[Alert, ...] = ()


NEVER_OPEN = LinkStatus(is_open=False, protocol_state="CLOSED", state="new")


def total(
    links: tuple[LinkStatus, ...], counters: Mapping[str, float] = NO_COUNTERS, alerts: tuple[Alert, ...] = ()
) -> MonitorStatus:
    """Return what the *links* are together."""
    shown = next((each for each in links if not each.is_open), links[0] if links else NEVER_OPEN)
    lags = [each.lag for each in links if each.lag is not None]
    days = [each.certificate_days for each in links if each.certificate_days is not None]
    return MonitorStatus(
        is_open=bool(links) and all(each.is_open for each in links),
        protocol_state=shown.protocol_state,
        server_properties=next((each.server_properties for each in links if each.server_properties), {}),
        bytes_sent=sum(each.bytes_sent for each in links),
        bytes_received=sum(each.bytes_received for each in links),
        state=shown.state,
        is_blocked=any(each.is_blocked for each in links),
        generation=shown.generation,
        last_error=shown.last_error,
        connected_since=shown.connected_since,
        lag=max(lags, default=None),
        certificate_days=min(days, default=None),
        heard_ago=shown.heard_ago,
        name=shown.name,
        connections=links,
        counters=counters,
        alerts=alerts,
    )
