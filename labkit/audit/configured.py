"""The rules for settings: what a program would connect with, before it connects."""

from collections.abc import Iterator

from labkit.audit.code import HEARTBEAT_LEAST, HEARTBEAT_MOST, HERE
from labkit.audit.rules import DOCS, rule
from labkit.audit.upgrades import FRAME_MAX_LEAST
from labkit.settings.certificates import WARN_BEFORE
from labkit.settings.settings import BrokerSettings

Found = Iterator[tuple[str, str]]  # the field, and what is there

PASSWORD_LEAST = 12  # characters
COMMON = {"password", "rabbitmq", "changeme", "letmein", "welcome", "secret", "admin", "qwerty", "123456"}


@rule(
    "settings-heartbeat", "settings", like="heartbeat-out-of-range",
    fix=f"a heartbeat from {HEARTBEAT_LEAST} to {HEARTBEAT_MOST} s; 60 is the default",
)  # fmt: skip
def heartbeat(settings: BrokerSettings) -> Found:
    """A heartbeat that is off, hasty or very slow."""
    value = settings.heartbeat  # None, or a function: the broker has a say in it
    if isinstance(value, int) and not HEARTBEAT_LEAST <= value <= HEARTBEAT_MOST:
        yield "heartbeat", f"{value} s"


@rule(
    "settings-blocked-timeout", "settings", like="no-blocked-timeout",
    fix="blocked_connection_timeout=300, the default",
)  # fmt: skip
def blocked_timeout(settings: BrokerSettings) -> Found:
    """No limit on how long the broker may block."""
    if settings.blocked_connection_timeout is None:
        yield "blocked_connection_timeout", "None"


@rule(
    "settings-no-tls", "settings",
    why="the password and every message cross the network in the clear",
    fix="an amqps:// URL, or tls=TlsSettings(ca_file=...)",
    reference=f"{DOCS}ssl",
)  # fmt: skip
def no_tls(settings: BrokerSettings) -> Found:
    """A broker on another machine that is spoken to in the clear."""
    away = _away(settings)
    if away and settings.tls is None:
        yield "tls", f"none, and {away} is another machine"


@rule(
    "settings-tls-not-verified", "settings",
    why="anybody who sits on the way can be the broker, and is told the password",
    fix="TlsSettings(ca_file=...) without insecure",
    reference=f"{DOCS}ssl#peer-verification",
)  # fmt: skip
def tls_not_verified(settings: BrokerSettings) -> Found:
    """TLS that accepts any certificate."""
    if settings.tls is not None and settings.tls.insecure:
        yield "tls.insecure", "True"


@rule(
    "settings-guest", "settings",
    why="everybody knows guest's password; RabbitMQ lets guest in from its own machine only",
    fix="a user of its own for each program",
    reference=f"{DOCS}access-control#loopback-users",
)  # fmt: skip
def guest(settings: BrokerSettings) -> Found:
    """guest's name for a broker on another machine."""
    away = _away(settings)
    if away and settings.username == "guest" and settings.auth_mechanism == "PLAIN":
        yield "username", f"guest at {away}"


@rule(
    "settings-weak-password", "settings",
    why="a short or common password is found by trying; RabbitMQ does not slow such a caller down",
    fix=f"{PASSWORD_LEAST} characters or more from a generator, such as secrets.token_urlsafe()",
    reference=f"{DOCS}passwords",
)  # fmt: skip
def weak_password(settings: BrokerSettings) -> Found:
    """A password that is short, common or the user's name, for a broker on another machine."""
    password = settings.password.get_secret_value()
    common = password.lower() in COMMON or password == settings.username
    if _away(settings) and settings.auth_mechanism == "PLAIN" and (common or len(password) < PASSWORD_LEAST):
        yield "password", "common" if common else f"{len(password)} characters"


@rule(
    "settings-certificate-ends", "settings",
    why="from that day on no new connection is made, by no program that uses it",
    fix="a new certificate; labkit reads the file again at every connect",
    reference=f"{DOCS}ssl#certificates-and-keys",
)  # fmt: skip
def certificate_ends(settings: BrokerSettings) -> Found:
    """A client certificate that is out of date soon."""
    certificate = settings.tls.certificate() if settings.tls is not None else None
    if certificate is not None and certificate.days_left() < WARN_BEFORE:
        yield "tls.cert_file", f"{int(certificate.days_left())} days left"


@rule(
    "settings-no-name", "settings",
    why="at the broker all of a program's connections look alike, and nobody can tell whose they are",
    fix='connection_name="orders"',
    reference=f"{DOCS}connections#client-provided-names",
)  # fmt: skip
def no_name(settings: BrokerSettings) -> Found:
    """A connection that the broker cannot show by name."""
    if not settings.connection_name:
        yield "connection_name", "none"


@rule(
    "settings-small-frames", "settings", since="rabbitmq-4.1",
    why="the broker refuses a client whose frame_max is below 8192 bytes",
    fix="frame_max=131072, which is the default",
    reference="https://github.com/rabbitmq/rabbitmq-server/releases/tag/v4.1.0",
)  # fmt: skip
def small_frames(settings: BrokerSettings) -> Found:
    """Frames that are smaller than the broker wants to begin with."""
    if settings.frame_max < FRAME_MAX_LEAST:
        yield "frame_max", str(settings.frame_max)


def _away(settings: BrokerSettings) -> str:
    """Return the first host that is another machine; empty if none is."""
    return next((host for host, _ in settings.addresses if host not in HERE), "")
