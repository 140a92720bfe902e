"""Every error labkit raises on purpose.

LabkitError
├── ConfigurationError        an invalid setting (also a ValueError); MissingExtra: what to install
├── ConnectError              no connection before the deadline
│   ├── AuthenticationFailed, AccessRefused    refused; never retried
│   └── TlsError              CertificateNotTrusted, CertificateNameMismatch, CertificateExpired,
│                             CertificateNotYetValid, ClientCertificateMissing, ClientCertificateRefused,
│                             NotTls, TlsRequired: one subclass a cause
├── NotConnected, ChannelLost  what you held is gone; `reason` is what closed it (ConnectionLost is the event)
├── PoolClosed, PoolTimeout, TooManyWaiting, LeaseError    PoolTimeout is also a TimeoutError
├── PublishRejected, Unroutable, OutcomeUnknown    what became of a message
│   └── MessageRefused        a PublishRejected that stays so: the broker closed the channel, or the link, over it
├── DeadlineExceeded          an operation's own time ran out (also a TimeoutError)
├── WrongThread               a call that waits, on the I/O thread that it would wait for (also a RuntimeError)
├── FrameError                the byte stream is not AMQP 0-9-1
├── RpcTimeout, RemoteError   no reply in time; the endpoint raised (type name and text)
└── BrokerError               no broker to be had, or it never became ready

``except LabkitError`` means labkit and nothing else. Facts are attributes, and Pika's own error is
the ``__cause__``. :func:`classify` says what any error, ours or Pika's, means for a retry.
"""

# ruff: noqa: N818 - the names are the field's own words (PoolTimeout, NotConnected), not "...Error" by rule

from collections.abc import Sequence

from labkit.printable import printable
from labkit.verdicts import Kind, Verdict, classify, describe

__all__ = [
    "AccessRefused",
    "AuthenticationFailed",
    "BrokerError",
    "CertificateExpired",
    "CertificateNameMismatch",
    "CertificateNotTrusted",
    "CertificateNotYetValid",
    "ChannelLost",
    "ClientCertificateMissing",
    "ClientCertificateRefused",
    "ConfigurationError",
    "ConnectError",
    "DeadlineExceeded",
    "FrameError",
    "Kind",
    "LabkitError",
    "LeaseError",
    "MessageRefused",
    "MissingExtra",
    "NotConnected",
    "NotTls",
    "OutcomeUnknown",
    "PoolClosed",
    "PoolTimeout",
    "PublishRejected",
    "RemoteError",
    "RpcTimeout",
    "TlsError",
    "TlsRequired",
    "TooManyWaiting",
    "Unroutable",
    "Verdict",
    "WrongThread",
    "classify",
    "describe",
]


class LabkitError(Exception):
    """The root: every error labkit raises on purpose."""

    #: What a retry would meet; None leaves the answer to ``__cause__`` or ``reason`` (see :func:`classify`).
    kind: Kind | None = None

    def __str__(self) -> str:
        # What a broker or a client said may be part of it, and it is printed at terminals.
        return printable(super().__str__(), keep="\n\t")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only facts would be lost by Exception's own way of pickling (multiprocessing, futures).
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[LabkitError], args: tuple[object, ...], facts: dict[str, object]) -> LabkitError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class ConfigurationError(LabkitError, ValueError):
    """An invalid setting. Raised before any network I/O.

    Attributes:
        field: The setting's name, or None if the problem is not one field's.
        value: What was given; None if it is secret or unknown.
        allowed: What would be accepted, as text.
    """

    kind = Kind.OUR_BUG

    def __init__(
        self, message: str, *, field: str | None = None, value: object = None, allowed: str | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.allowed = allowed


class MissingExtra(ConfigurationError):
    """A part of labkit needs a package that is not installed.

    Attributes:
        extra: The extra to install, as in ``labkit-rabbitmq[twisted]``.
        package: The module that could not be imported.
    """

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"this needs the package {package!r}: pip install 'labkit-rabbitmq[{extra}]'", field="extra", allowed=extra
        )
        self.extra = extra
        self.package = package


class ConnectError(LabkitError):
    """No connection before the deadline, or after the last attempt.

    Attributes:
        hosts: The ``host:port`` texts that were tried, in order.
        attempts: How many connection attempts were made; one attempt tries all addresses of one host.
        elapsed: Seconds spent, pauses included.
    """

    def __init__(self, message: str, *, hosts: Sequence[str] = (), attempts: int = 0, elapsed: float = 0.0) -> None:
        super().__init__(message)
        self.hosts = tuple(hosts)
        self.attempts = attempts
        self.elapsed = elapsed


class AuthenticationFailed(ConnectError):
    """The broker refused the user name, the password or the mechanism."""

    kind = Kind.REFUSED


class AccessRefused(ConnectError):
    """The login was right, but this virtual host is missing or not this user's."""

    kind = Kind.REFUSED


class TlsError(ConnectError):
    """The TLS handshake failed for good."""

    kind = Kind.REFUSED


class CertificateNotTrusted(TlsError):
    """No authority that we trust signed the broker's certificate."""


class CertificateNameMismatch(TlsError):
    """The broker's certificate is for another name."""


class CertificateExpired(TlsError):
    """The broker's certificate is out of date."""


class CertificateNotYetValid(TlsError):
    """The broker's certificate is for later, or a clock is wrong."""


class ClientCertificateMissing(TlsError):
    """The broker wants a client certificate, and none was given."""


class ClientCertificateRefused(TlsError):
    """The broker does not take our certificate: it is out of date, or signed by nobody the broker trusts."""


class NotTls(TlsError):
    """We speak TLS, and what answers on that port does not."""


class TlsRequired(TlsError):
    """We speak plain AMQP, and what answers on that port speaks TLS."""


class NotConnected(LabkitError):
    """There is no open connection: not opened yet, closed, or lost.

    Attributes:
        reason: The error that ended it, or None if it was never open or was closed on request.
    """

    def __init__(self, message: str, *, reason: BaseException | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class ChannelLost(LabkitError):
    """The channel you held is gone; the connection may still be open.

    Attributes:
        reason: The error that closed it: Pika's ``ChannelClosedByBroker`` with the broker's own words, for example.
        unsent: How many messages and acknowledgements were handed over to the channel so far, by calls that returned
            without an error, and then not sent, since it ended first. (What was sent may not have arrived.)
        unsent_messages: How many of these are messages.
    """

    def __init__(
        self, message: str, *, reason: BaseException | None = None, unsent: int = 0, unsent_messages: int = 0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.unsent = unsent
        self.unsent_messages = unsent_messages


class PoolClosed(LabkitError):
    """The pool was closed; it hands out nothing any more."""

    kind = Kind.ASKED_FOR


class PoolTimeout(LabkitError, TimeoutError):
    """No entry became free in time.

    Attributes:
        timeout: Seconds that were waited.
        stats: The pool's counters at that moment, if it gave them.
    """

    kind = Kind.BUSY

    def __init__(self, message: str, *, timeout: float | None = None, stats: object = None) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.stats = stats


class TooManyWaiting(LabkitError):
    """The waiting line is full (``max_waiting``); raised at once.

    Attributes:
        waiting: How many callers are in the line.
    """

    kind = Kind.BUSY

    def __init__(self, message: str, *, waiting: int | None = None) -> None:
        super().__init__(message)
        self.waiting = waiting


class LeaseError(LabkitError):
    """What you use is not yours: given back already, of another pool, or owned by another thread."""

    kind = Kind.OUR_BUG


class PublishRejected(LabkitError):
    """The broker said no to a message (``Basic.Nack``); it may accept it later."""

    kind = Kind.BUSY


class MessageRefused(PublishRejected):
    """The broker closed the channel over a message: too large, no permission (403), an invalid property (406).

    Or the whole connection, twice, with nothing else on its way: headers above the frame size (501).

    Attributes:
        reason: Pika's ``ChannelClosedByBroker`` or ``ConnectionClosedByBroker``, with the broker's own words.
    """

    kind = Kind.REFUSED

    def __init__(self, message: str, *, reason: BaseException | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class Unroutable(LabkitError):
    """No queue would have received the message, so the broker returned it (``Basic.Return``).

    Attributes:
        exchange: Where it was published; "" is the default exchange.
        routing_key: Its routing key; on the default exchange, the queue's name.
        reply_code: 312 for no route.
    """

    kind = Kind.REFUSED

    def __init__(self, message: str, *, exchange: str = "", routing_key: str = "", reply_code: int = 312) -> None:
        super().__init__(message)
        self.exchange = exchange
        self.routing_key = routing_key
        self.reply_code = reply_code


class OutcomeUnknown(LabkitError):
    """The link ended before the broker answered: the message may or may not have arrived.

    Publishing it again is safe only if the receiver can recognise a duplicate (``message_id``).

    Attributes:
        message_id: The message's id, if it had one.
    """

    def __init__(self, message: str, *, message_id: str | None = None) -> None:
        super().__init__(message)
        self.message_id = message_id


class DeadlineExceeded(LabkitError, TimeoutError):
    """An operation's own time ran out.

    Attributes:
        deadline: Seconds that it had.
    """

    kind = Kind.TRANSIENT

    def __init__(self, message: str, *, deadline: float | None = None) -> None:
        super().__init__(message)
        self.deadline = deadline


class WrongThread(LabkitError, RuntimeError):
    """A call that waits for what its own thread is to do: the I/O thread, one that brings a link up or fills a pool.

    Nothing was done. A log handler is called on these threads, for what Pika and labkit log.
    """

    kind = Kind.OUR_BUG


class FrameError(LabkitError):
    """The byte stream is not AMQP 0-9-1; nobody knows where the next frame begins.

    Attributes:
        offset: Octets from the start of the stream to the frame that could not be read; None if not known.
    """

    kind = Kind.OUR_BUG

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (at octet {offset} of the stream)")
        self.offset = offset


class RpcTimeout(LabkitError, TimeoutError):
    """No reply in time.

    Attributes:
        timeout: Seconds that were waited.
    """

    kind = Kind.TRANSIENT

    def __init__(self, message: str, *, timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout


class RemoteError(LabkitError):
    """The endpoint raised.

    Attributes:
        type_name: The remote exception's class name.
        text: Its text.
        traceback: Where it was raised, as text of the other side's; "" if that did not say.
    """

    kind = Kind.REFUSED

    def __init__(self, type_name: str, text: str, *, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name
        self.text = text
        self.traceback = traceback


class BrokerError(LabkitError):
    """No broker to be had, or it never became ready, or it cannot do what was asked."""

    kind = Kind.REFUSED
