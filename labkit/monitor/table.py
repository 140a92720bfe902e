"""Every metric in one table: its name, kind, labels, unit and help text. ``docs/metrics.md`` is made of it.

Names and units follow Prometheus, "Metric and label naming": base units, ``_total`` for what only grows. No I/O.
"""

from dataclasses import dataclass

PREFIX = "labkit_"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    Attributes:
        name: Without ``labkit_``; of a counter, with ``_total``.
        kind: "gauge", "counter" or "histogram".
        help: What it says.
        label: The name of its one label; "": it has none.
        values: The label's values that are always there; others come as they occur.
        mode: How a gauge of several processes is put together: "livesum", "livemax" or "livemin".
    """

    name: str
    kind: str
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    mode: str = "livesum"


STATES = ("new", "connecting", "open", "waiting", "failed", "closing", "closed")
OUTCOMES = ("confirmed", "rejected", "returned", "unknown", "not sent")
CHECKOUTS = ("granted", "timeouts", "rejected", "closed", "interrupted")
ALERTS = ("connection lost", "bad protocol state", "blocked", "lag", "leak", "certificate", "pool exhausted")

METRICS = (
    Metric("connection_state", "gauge", "Connections in each state.", "state", STATES),
    Metric("connection_blocked", "gauge", "Connections on which the broker takes no publishes (an alarm)."),
    Metric("io_thread_lag_seconds", "gauge", "How far the I/O thread is behind.", mode="livemax"),
    Metric(
        "certificate_expiry_timestamp_seconds",
        "gauge",
        "When the first of the brokers' certificates is out of date, since the epoch; +Inf: no TLS.",
        mode="livemin",
    ),
    Metric("alerts", "gauge", "Alerts of the monitor that are raised now.", "kind", ALERTS),
    Metric("alerts_raised_total", "counter", "Alerts that were raised.", "kind", ALERTS),
    Metric("connections_lost_total", "counter", "Open links that ended, and nobody here had closed them."),
    Metric("reconnects_total", "counter", "Lost links that were replaced by recovery."),
    Metric("connect_failures_total", "counter", "Attempts to connect that failed."),
    Metric("sent_bytes_total", "counter", "Bytes sent over all links; what waits to be sent counts."),
    Metric("received_bytes_total", "counter", "Bytes received over all links."),
    Metric("publishes_in_flight", "gauge", "Messages of publishers that are not settled yet."),
    Metric(
        "messages_published_total", "counter", "Messages of publishers, by what became of them.", "outcome", OUTCOMES
    ),
    Metric("messages_sent_total", "counter", "Messages written to a link, copies that were sent again included."),
    Metric("publish_confirm_seconds", "histogram", "From publish() to the broker's confirm."),
    Metric("deliveries_total", "counter", "Messages that the broker delivered to consumers."),
    Metric("deliveries_handled_total", "counter", "How handlers ended.", "result", ("returned", "raised")),
    Metric(
        "settlements_total",
        "counter",
        "Answers of consumers; dropped: the link of the delivery was gone, and it comes again.",
        "verb",
        ("ack", "nack", "reject", "dropped"),
    ),
    Metric("pool_entries", "gauge", "Places of pools that are taken.", "state", ("idle", "leased", "connecting")),
    Metric("pool_max_entries", "gauge", "Places that pools have at most."),
    Metric("pool_waiting", "gauge", "Callers that wait for a place."),
    Metric("pool_overdue_leases", "gauge", "Leases that are out for longer than leak_after."),
    Metric("pool_checkouts_total", "counter", "Checkouts that got their answer.", "result", CHECKOUTS),
    Metric("pool_lost_total", "counter", "Entries of pools that died."),
    Metric("pool_leaks_total", "counter", "Leases that were reported for being out too long."),
    Metric("pool_wait_seconds_total", "counter", "What checkouts waited, together."),
    Metric("pool_use_seconds_total", "counter", "What leases lasted, together."),
)
BY_NAME = {each.name: each for each in METRICS}


def as_markdown() -> str:
    """Return the table as the documentation shows it."""
    rows = ["| metric | kind | label | says |", "| --- | --- | --- | --- |"]
    for each in METRICS:
        label = f"`{each.label}`" if each.label else ""
        rows.append(f"| `{PREFIX}{each.name}` | {each.kind} | {label} | {each.help} |")
    return "\n".join(rows) + "\n"
