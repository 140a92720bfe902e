"""The rules for a running broker, by what its management API says."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from labkit.audit.rules import DOCS, rule
from labkit.audit.upgrades import DEPRECATED
from labkit.brokers import Broker
from labkit.brokers.management import Management
from labkit.connector.tls_session import tls_session
from labkit.errors import BrokerError
from labkit.factory import ConnectionFactory
from labkit.settings.certificates import WARN_BEFORE

LIMITS = ("max-length", "max-length-bytes", "message-ttl", "expires", "max-age")  # of a queue, in a policy
REPLY_TO = "amq.rabbitmq.reply-to"

Found = Iterator[tuple[str, str]]  # what it is, and what is there


@dataclass(frozen=True)
class Look:
    """What a broker said of itself.

    Attributes:
        overview, users, permissions, queues, policies, connections, consumers: As the management API has them.
        deprecated: Names of deprecated features in use; empty where the broker does not tell (before 3.13).
        certificate_days: Until the TLS listener's certificate is out of date; None without one.
    """

    overview: dict[str, Any] = field(default_factory=dict)
    users: list[dict[str, Any]] = field(default_factory=list)
    permissions: list[dict[str, Any]] = field(default_factory=list)
    queues: list[dict[str, Any]] = field(default_factory=list)
    policies: list[dict[str, Any]] = field(default_factory=list)
    connections: list[dict[str, Any]] = field(default_factory=list)
    consumers: list[dict[str, Any]] = field(default_factory=list)
    deprecated: list[str] = field(default_factory=list)
    certificate_days: float | None = None


def look(broker: Broker) -> Look:
    """Ask *broker* for all of it; reads only.

    Raises:
        BrokerError: the management API gives no answer within 10 s a request, or refuses.
        ConnectError: it has a TLS listener, and a handshake with it fails.
    """
    if "management" not in broker.capabilities:
        raise BrokerError("the audit of a broker asks its management API, and there is none, or not for this user")
    settings = broker.settings()
    api = Management(broker.management_url, settings.username, settings.password.get_secret_value(), tls=settings.tls)
    lists = {
        each: list(api.get(each) or [])
        for each in ("users", "permissions", "queues", "policies", "connections", "consumers")
    }
    deprecated = [str(each["name"]) for each in api.get("deprecated-features/used") or []]
    return Look(
        overview=api.get("overview"), deprecated=deprecated, certificate_days=_certificate_days(broker), **lists
    )


def _certificate_days(broker: Broker) -> float | None:
    if "tls" not in broker.capabilities:
        return None
    connection = ConnectionFactory(broker.settings(tls=True)).blocking()
    try:
        session = tls_session(connection)
    finally:
        connection.close()
    return None if session is None or session.certificate is None else session.certificate.days_left()


@rule(
    "broker-guest", "broker",
    why="everybody knows guest's password, and a proxy or a container's port makes everybody local",
    fix="rabbitmqctl delete_user guest",
    reference=f"{DOCS}production-checklist#users",
)  # fmt: skip
def guest(seen: Look) -> Found:
    """The user guest."""
    yield from (("user guest", "it is there") for each in seen.users if each["name"] == "guest")


@rule(
    "broker-wide-permissions", "broker",
    why="one program's mistake, or its stolen password, can delete what belongs to others",
    fix="rabbitmqctl set_permissions with a pattern for each of configure, write and read",
    reference=f"{DOCS}access-control#authorisation",
)  # fmt: skip
def wide_permissions(seen: Look) -> Found:
    """A user who may do everything in a virtual host, and is no administrator."""
    administrators = {each["name"] for each in seen.users if "administrator" in each["tags"]}
    for each in seen.permissions:
        wide = all(each[verb] in (".*", "") and each[verb] for verb in ("configure", "write", "read"))
        if wide and each["user"] not in administrators:
            yield f"user {each['user']} in {each['vhost']}", "may configure, write and read everything"


@rule(
    "broker-no-tls", "broker",
    why="passwords and messages of other machines can only come in the clear",
    fix="listeners.ssl.default = 5671, with a certificate",
    reference=f"{DOCS}ssl",
)  # fmt: skip
def no_tls(seen: Look) -> Found:
    """A broker without a TLS listener."""
    if not any(each["protocol"] == "amqp/ssl" for each in seen.overview["listeners"]):
        yield "listeners", "none for AMQP with TLS"


@rule(
    "broker-certificate-ends", "broker",
    why="from that day on no client that verifies it connects",
    fix="a new certificate; RabbitMQ reads the files again for new connections",
    reference=f"{DOCS}ssl#certificates-and-keys",
)  # fmt: skip
def certificate_ends(seen: Look) -> Found:
    """A certificate that is out of date soon."""
    if seen.certificate_days is not None and seen.certificate_days < WARN_BEFORE:
        yield "the TLS listener's certificate", f"{int(seen.certificate_days)} days left"


@rule(
    "broker-unbounded-queue", "broker",
    why="if its consumers stop, it grows until the broker's alarm blocks every publisher",
    fix="a policy with max-length or max-length-bytes, and overflow",
    reference=f"{DOCS}maxlength",
)  # fmt: skip
def unbounded_queue(seen: Look) -> Found:
    """A lasting queue without a limit in its arguments or its policy."""
    for each in seen.queues:
        if not each.get("exclusive") and not _says(each, *LIMITS):
            yield _queue(each), "no limit of length, bytes or age"


@rule(
    "broker-auto-ack", "broker",
    why="the broker forgets a message when it sends it: what a crash or a lost link meets is gone",
    fix="consume with acknowledgements",
    reference=f"{DOCS}confirms#acknowledgement-modes",
)  # fmt: skip
def auto_ack(seen: Look) -> Found:
    """A consumer that acknowledges nothing."""
    for each in seen.consumers:
        if not each["ack_required"] and not each["queue"]["name"].startswith(REPLY_TO):
            yield f"consumer of {each['queue']['name']} in {each['queue']['vhost']}", "acknowledges nothing"


@rule(
    "broker-no-prefetch", "broker",
    why="the broker sends it the whole queue ahead, into its memory",
    fix="basic.qos, or default_consumer_prefetch",
    reference=f"{DOCS}consumer-prefetch",
)  # fmt: skip
def no_prefetch(seen: Look) -> Found:
    """A consumer without a limit on what is sent ahead."""
    for each in seen.consumers:
        if each["ack_required"] and not each["prefetch_count"]:
            yield f"consumer of {each['queue']['name']} in {each['queue']['vhost']}", "no prefetch"


@rule(
    "broker-heartbeat-off", "broker",
    why="the broker keeps what a dead client held until TCP gives up, two hours later",
    fix="a heartbeat in the client's parameters",
    reference=f"{DOCS}heartbeats",
)  # fmt: skip
def heartbeat_off(seen: Look) -> Found:
    """A connection without heartbeats."""
    for each in seen.connections:
        if each.get("timeout") == 0:
            yield f"connection {each['name']}", "no heartbeat"


@rule(
    "broker-transient-queue", "broker", since="rabbitmq-4.0",
    why="deprecated; where it is not permitted, declaring such a queue ends the link (541)",
    fix="declare it durable, or exclusive",
    reference=DEPRECATED,
)  # fmt: skip
def transient_queue(seen: Look) -> Found:
    """A queue that is neither durable nor exclusive."""
    for each in seen.queues:
        if not each["durable"] and not each.get("exclusive"):
            yield _queue(each), "neither durable nor exclusive"


@rule(
    "broker-deprecated-feature", "broker", since="rabbitmq-4.0",
    why="the broker says itself that a coming version will refuse it",
    fix="rabbitmqctl list_deprecated_features --used says who uses what",
    reference=DEPRECATED,
)  # fmt: skip
def deprecated_feature(seen: Look) -> Found:
    """A deprecated feature in use."""
    yield from ((each, "in use") for each in seen.deprecated)


@rule(
    "broker-mirrored-queue", "broker", since="rabbitmq-4.0",
    why="classic mirrored queues are gone: one node's loss takes the queue along",
    fix="quorum queues",
    reference="https://www.rabbitmq.com/docs/3.13/migrate-mcq-to-qq",
)  # fmt: skip
def mirrored_queue(seen: Look) -> Found:
    """A policy for mirrored queues."""
    for each in seen.policies:
        if "ha-mode" in each["definition"]:
            yield f"policy {each['name']} in {each['vhost']}", f"ha-mode {each['definition']['ha-mode']}"


@rule(
    "broker-queue-mode", "broker", since="rabbitmq-4.0",
    why="x-queue-mode has had no effect since 3.12: such a queue is no lazier than others",
    fix="declare the queue without it",
    reference=f"{DOCS}lazy-queues",
)  # fmt: skip
def queue_mode(seen: Look) -> Found:
    """A lazy queue."""
    for each in seen.queues:
        if _says(each, "queue-mode"):
            yield _queue(each), "x-queue-mode"


@rule(
    "broker-no-delivery-limit", "broker", since="rabbitmq-4.0",
    why="a quorum queue drops, or dead-letters, a message after 20 failed deliveries unless it says another number",
    fix="delivery-limit in a policy, with a dead-letter-exchange",
    reference=f"{DOCS}quorum-queues#poison-message-handling",
)  # fmt: skip
def no_delivery_limit(seen: Look) -> Found:
    """A quorum queue that does not say how often a message may fail."""
    for each in seen.queues:
        if each.get("type") == "quorum" and not _says(each, "delivery-limit"):
            yield _queue(each), "no delivery-limit"


def _says(queue: dict[str, Any], *names: str) -> bool:
    policy = queue.get("effective_policy_definition") or {}
    return any(f"x-{name}" in queue["arguments"] or name in policy for name in names)


def _queue(queue: dict[str, Any]) -> str:
    return f"queue {queue['name']} in {queue['vhost']}"
