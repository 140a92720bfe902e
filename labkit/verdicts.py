"""Say what an error means for whoever wants to try again: one pure function, no I/O.

``labkit.errors`` imports this module and offers :func:`classify` under its own name. The arrow can
point that way only because nothing here knows labkit's error classes: each of them carries its own
``kind``, and this page reads that attribute.

The rules, in this order: the type, then the AMQP reply code, then the broker's text. The texts that
matter ("limit ... is reached", "deprecated", a TLS alert) are pinned by broker tests.
"""

import asyncio
import concurrent.futures
import enum
import errno
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pika.exceptions as px
from pika.adapters.utils import connection_workflow as workflow

from labkit.printable import a_type, printable


class Kind(enum.Enum):
    """What a retry would meet."""

    TRANSIENT = "transient"
    BUSY = "broker busy"
    REFUSED = "refused"
    OUR_BUG = "our bug"
    ASKED_FOR = "asked for"

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about an error: ``kind`` for programs, ``advice`` for people.

    Attributes:
        least_pause: Seconds to wait at least before the next try.
        is_free: Whether it leaves the number of tries that are left as it was.
    """

    kind: Kind
    advice: str
    least_pause: float = 0.0
    is_free: bool = False

    @property
    def is_retryable(self) -> bool:
        """The same call can succeed later; busy means: wait longer first."""
        return self.kind in (Kind.TRANSIENT, Kind.BUSY)


ADVICE = {
    Kind.TRANSIENT: "try again after a pause; the link or the broker may be back",
    Kind.BUSY: "wait longer before the next try; the broker is alive but has no room now",
    Kind.REFUSED: "do not try again; change the settings or the broker first",
    Kind.OUR_BUG: "do not try again; correct the program",
    Kind.ASKED_FOR: "nothing to repair; this side asked for it",
}

# How much an error forbids a retry. Of several causes the strictest decides: one refused login among
# three unreachable hosts must not be repeated, or the account may be locked.
STRICTNESS = (Kind.TRANSIENT, Kind.BUSY, Kind.ASKED_FOR, Kind.OUR_BUG, Kind.REFUSED)

# AMQP 0-9-1, section 1.2 (Constants). 405 is busy: after a half-open loss the broker frees an exclusive
# queue only when it notices that the old link is dead.
REPLY_CODES = {
    200: Kind.ASKED_FOR,
    311: Kind.REFUSED,  # content too large
    312: Kind.REFUSED,  # no route
    313: Kind.REFUSED,  # no consumers
    320: Kind.TRANSIENT,  # connection forced: shutdown, or an operator closed it
    402: Kind.REFUSED,  # invalid path
    403: Kind.REFUSED,  # access refused
    404: Kind.REFUSED,  # not found
    405: Kind.BUSY,  # resource locked
    406: Kind.REFUSED,  # precondition failed
    501: Kind.OUR_BUG,  # frame error
    502: Kind.OUR_BUG,  # syntax error
    503: Kind.OUR_BUG,  # command invalid
    504: Kind.OUR_BUG,  # channel error
    505: Kind.OUR_BUG,  # unexpected frame
    506: Kind.BUSY,  # resource error
    530: Kind.REFUSED,  # not allowed; BUSY when its text says that a limit is reached
    540: Kind.OUR_BUG,  # not implemented
    541: Kind.BUSY,  # internal error; REFUSED when its text says that a feature is deprecated and not permitted
}

# Every class of pika.exceptions and of the connection workflow has its place here; a test counts them.
# The most derived class wins.
PLACES: dict[type[BaseException], Kind] = {
    px.AMQPError: Kind.OUR_BUG,
    px.AMQPConnectionError: Kind.TRANSIENT,
    px.ConnectionOpenAborted: Kind.ASKED_FOR,
    px.StreamLostError: Kind.TRANSIENT,
    px.IncompatibleProtocolError: Kind.TRANSIENT,  # a booting broker; REFUSED when it holds a TLS alert
    px.AuthenticationError: Kind.REFUSED,
    px.ProbableAuthenticationError: Kind.REFUSED,  # TRANSIENT when the link was cut at that stage
    px.ProbableAccessDeniedError: Kind.REFUSED,  # likewise; BUSY when a limit is reached
    px.NoFreeChannels: Kind.OUR_BUG,
    px.ConnectionWrongStateError: Kind.TRANSIENT,  # closed under us: a new connection helps
    px.ConnectionClosed: Kind.TRANSIENT,  # by reply code
    px.ConnectionClosedByBroker: Kind.TRANSIENT,  # by reply code
    px.ConnectionClosedByClient: Kind.ASKED_FOR,
    px.ConnectionBlockedTimeout: Kind.BUSY,
    px.AMQPHeartbeatTimeout: Kind.TRANSIENT,
    px.AMQPChannelError: Kind.TRANSIENT,
    px.ChannelWrongStateError: Kind.TRANSIENT,  # closed under us: a new channel helps
    px.ChannelClosed: Kind.REFUSED,  # by reply code
    px.ChannelClosedByBroker: Kind.REFUSED,  # by reply code
    px.ChannelClosedByClient: Kind.ASKED_FOR,
    px.DuplicateConsumerTag: Kind.OUR_BUG,
    px.ConsumerCancelled: Kind.TRANSIENT,  # for whichever reason: see why_cancelled()
    px.UnroutableError: Kind.REFUSED,
    px.NackError: Kind.BUSY,  # a full queue, or its leader is moving
    px.InvalidChannelNumber: Kind.OUR_BUG,
    px.ProtocolSyntaxError: Kind.OUR_BUG,
    px.UnexpectedFrameError: Kind.OUR_BUG,
    px.ProtocolVersionMismatch: Kind.REFUSED,
    px.BodyTooLongError: Kind.OUR_BUG,
    px.InvalidFrameError: Kind.OUR_BUG,
    px.InvalidFieldTypeException: Kind.OUR_BUG,
    px.UnsupportedAMQPFieldException: Kind.OUR_BUG,
    px.MethodNotImplemented: Kind.OUR_BUG,
    px.ChannelError: Kind.OUR_BUG,
    px.ReentrancyError: Kind.OUR_BUG,
    px.ShortStringTooLong: Kind.OUR_BUG,
    px.DuplicateGetOkCallback: Kind.OUR_BUG,
    workflow.AMQPConnectorException: Kind.TRANSIENT,
    workflow.AMQPConnectorStackTimeout: Kind.TRANSIENT,
    workflow.AMQPConnectorAborted: Kind.ASKED_FOR,
    workflow.AMQPConnectorWrongState: Kind.OUR_BUG,
    workflow.AMQPConnectorPhaseErrorBase: Kind.TRANSIENT,  # by what it wraps
    workflow.AMQPConnectorSocketConnectError: Kind.TRANSIENT,  # by what it wraps
    workflow.AMQPConnectorTransportSetupError: Kind.TRANSIENT,  # by what it wraps
    workflow.AMQPConnectorAMQPHandshakeError: Kind.TRANSIENT,  # by what it wraps
    workflow.AMQPConnectionWorkflowFailed: Kind.TRANSIENT,  # by what it wraps
    workflow.AMQPConnectionWorkflowAborted: Kind.ASKED_FOR,
    workflow.AMQPConnectionWorkflowWrongState: Kind.OUR_BUG,
    # Python's own. OSError covers refused, reset, timed out, unreachable and socket.gaierror.
    OSError: Kind.TRANSIENT,
    ssl.SSLError: Kind.REFUSED,  # a certificate, an alert, or a port that does not speak TLS
    ssl.SSLEOFError: Kind.TRANSIENT,  # cut in the middle
    ssl.SSLZeroReturnError: Kind.TRANSIENT,
    ssl.SSLSyscallError: Kind.TRANSIENT,
    FileNotFoundError: Kind.REFUSED,  # a certificate file, for example
    PermissionError: Kind.REFUSED,
    asyncio.CancelledError: Kind.ASKED_FOR,
    concurrent.futures.CancelledError: Kind.ASKED_FOR,
    KeyboardInterrupt: Kind.ASKED_FOR,
    Exception: Kind.OUR_BUG,
    BaseException: Kind.ASKED_FOR,  # SystemExit, GeneratorExit
}

# What Pika 1.5 adds, where it is installed.
PLACES |= {
    getattr(px, name): kind
    for name, kind in (
        ("WorkQueueFullError", Kind.TRANSIENT),  # a handler was too slow, and Pika has dropped the link
        ("UnencodableDecimalError", Kind.OUR_BUG),
        ("UnencodableLongError", Kind.OUR_BUG),
        ("UnencodableTimestampError", Kind.OUR_BUG),
    )
    if hasattr(px, name)
}

# "node connection limit (1) is reached", "connection limit (2) is reached", "... user connection limit ...";
# "number of channels opened for user 'x' has reached the maximum allowed user limit of (2)" (4.3: "of 2"), "... on node
# 'x' has reached the maximum allowed limit of 2000"; "connection limit cannot be queried, timeout" (rabbit_reader.erl).
LIMIT_REACHED = re.compile(
    r"limit.{0,80}\bis reached|\breached the maximum allowed.{0,20}\blimit|limit cannot be queried",
    re.IGNORECASE | re.DOTALL,
)
# "Feature `transient_nonexcl_queues` is deprecated.\nIts use is not permitted per the configuration ...". Every other
# 541 is the broker's own trouble: "timed out consuming from quorum queue 'x'", "vhost 'x' is down", or no text at all.
DEPRECATED = re.compile(r"\bdeprecated\b", re.IGNORECASE)
# How a TLS 1.3 server's refusal of our certificate looks: it arrives when Pika already waits for AMQP.
TLS_ALERT = re.compile(r"(?:SSL|TLS).{0,200}ALERT", re.IGNORECASE | re.DOTALL)
# How ``labkit.connector.probe`` says that plain AMQP went to a TLS port; an alert too.
SPEAKS_TLS = "TLS ALERT IN ANSWER TO PLAIN AMQP"
# Pika's way to say that the other side hung up between TCP's handshake and AMQP's (io_services_utils.py).
PEER_GONE = "Expected connected socket"
# And its ValueError for a wait (process_data_events, sleep) on a connection that has ended (blocking_connection.py).
ENDED_BEFORE = "Timeout closed before call"
# Pika keeps the broker's answer only as text inside its "probable" errors.
CODE_IN_TEXT = re.compile(r"ConnectionClosedByBroker: \((\d{3})\)")


def classify(error: BaseException) -> Verdict:
    """Return what *error* means for a retry, looking through every wrapper.

    Wrappers are Pika's workflow errors, an ``AMQPConnectionError`` around another error, and a labkit
    error around its ``__cause__``. Of several causes the strictest decides.

    Raises:
        TypeError: *error* is not an exception.
    """
    kinds = [_kind_of(each) for each in _leaves(error)]
    kind = max(kinds, key=STRICTNESS.index)
    return Verdict(kind, _advice(kind, root_cause(error)))


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost error that says what went wrong; of several attempts, the last one's."""
    return list(_leaves(error))[-1]


def reply_code(error: BaseException) -> int | None:
    """Return the AMQP reply code the broker gave, or None if it gave none."""
    cause = root_cause(error)
    if isinstance(cause, px.ConnectionClosed | px.ChannelClosed):
        return int(cause.reply_code)
    if isinstance(cause, px.ProbableAuthenticationError | px.ProbableAccessDeniedError | px.IncompatibleProtocolError):
        found = CODE_IN_TEXT.search(str(cause))
        return int(found.group(1)) if found else None
    return None


def is_tls_failure(error: BaseException) -> bool:
    """Whether the TLS handshake failed for good: certificate, alert, or no TLS spoken there."""
    cause = root_cause(error)
    if isinstance(cause, ssl.SSLError):
        return _kind_of(cause) is Kind.REFUSED
    return isinstance(cause, px.IncompatibleProtocolError) and bool(TLS_ALERT.search(str(cause)))


def describe(error: BaseException) -> str:
    """Return a text that is never empty: ``str()`` of Pika's error for a refused socket is (it has no arguments)."""
    cause = root_cause(error)
    if isinstance(cause, px.ConnectionClosed | px.ChannelClosed):
        return printable(f"{type(cause).__name__}: ({cause.reply_code}) {cause.reply_text}")
    text = printable(str(cause).strip())
    if isinstance(cause, px.ProbableAuthenticationError | px.ProbableAccessDeniedError | px.IncompatibleProtocolError):
        text = re.sub(r"^['\"]|['\"]$", "", text)
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def _leaves(error: BaseException, depth: int = 0) -> Iterator[BaseException]:
    """Yield the errors inside *error* that wrap nothing themselves, in the order they happened.

    Raises:
        TypeError: it is no exception; its class is none, either.
    """
    _check(error)
    inner: list[BaseException] = []
    if depth < 20:  # a cause that is its own cause must not hang us
        inner = _wrapped(error)
    if not inner:
        yield error
    for each in inner:
        yield from _leaves(each, depth + 1)


def _check(error: object) -> None:
    if not isinstance(error, BaseException):
        shown = f"the class {error.__name__}" if isinstance(error, type) else a_type(error)
        raise TypeError(f"error: {shown} is not an exception; allowed: an exception that was raised, or could be")


def _wrapped(error: BaseException) -> list[BaseException]:
    if isinstance(error, workflow.AMQPConnectionWorkflowFailed):
        return list(error.exceptions)
    if isinstance(error, workflow.AMQPConnectorPhaseErrorBase):
        return [error.exception]
    if type(error) is px.AMQPConnectionError and error.args and isinstance(error.args[0], BaseException):
        return [error.args[0]]  # how BlockingConnection hands on a failed connect
    if hasattr(type(error), "kind") and getattr(error, "kind", None) is None:  # one of ours that leaves it to its cause
        reason = getattr(error, "reason", None)
        cause = error.__cause__ or (reason if isinstance(reason, BaseException) else None)
        return [cause] if cause is not None else []
    return []


def _kind_of(error: BaseException) -> Kind:
    own = getattr(error, "kind", None)
    if isinstance(own, Kind):
        return own
    if hasattr(type(error), "kind"):
        return Kind.TRANSIENT  # ours, without a cause: what was held is gone, a new one may be had
    if isinstance(error, px.ProbableAuthenticationError | px.ProbableAccessDeniedError):
        # Pika guesses from the stage at which the link ended. RabbitMQ says why it refuses (403, 530), so
        # without a code nobody refused anything: the link was cut, or the broker died, at that moment.
        code = reply_code(error)
        return Kind.TRANSIENT if code is None else _by_code(code, str(error), Kind.REFUSED)
    if isinstance(error, px.ConnectionClosedByClient | px.ChannelClosedByClient):
        return Kind.ASKED_FOR
    if isinstance(error, px.ConnectionClosed | px.ChannelClosed):
        return _by_code(error.reply_code, error.reply_text, _place(error))
    if isinstance(error, px.IncompatibleProtocolError) and TLS_ALERT.search(str(error)):
        return Kind.REFUSED
    if isinstance(error, ssl.SSLError) and "ALERT_INTERNAL_ERROR" in str(error):
        return Kind.TRANSIENT  # the other side failed by itself: its certificate is being replaced, for example
    if isinstance(error, ValueError) and (PEER_GONE in str(error) or str(error) == ENDED_BEFORE):
        return Kind.TRANSIENT
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return Kind.BUSY  # out of descriptors here
    return _place(error)


def _by_code(code: int, text: str, otherwise: Kind) -> Kind:
    if code == 530 and LIMIT_REACHED.search(text):
        return Kind.BUSY
    if code == 541 and DEPRECATED.search(text):
        return Kind.REFUSED
    return REPLY_CODES.get(code, otherwise)


def _place(error: BaseException) -> Kind:
    return next(PLACES[cls] for cls in type(error).__mro__ if cls in PLACES)


def _advice(kind: Kind, cause: BaseException) -> str:
    special = {
        px.NoFreeChannels: "close channels you no longer need; every open one counts until it is closed",
        px.ConsumerCancelled: "look whether the queue is there, declare it again if not, then consume again",
        px.UnroutableError: "declare the queue or the binding first; nothing would receive the message",
        px.ReentrancyError: "do not start a second consume or pump from inside a callback",
        px.DuplicateConsumerTag: "choose another consumer tag, or let the broker choose one",
    }
    return special.get(type(cause), ADVICE[kind])


def why_cancelled(queue: str, is_missing: bool | None) -> str:
    """Return what is known of why the broker has ended a consumer of *queue*: its basic.cancel names no cause.

    Args:
        queue: Its name.
        is_missing: What a look at it has found; None: nobody could look.
    """
    if is_missing:
        return f"queue {queue!r} was deleted"
    what = "its node went away, or a message was not acknowledged within the broker's consumer timeout"
    if is_missing is None:
        return f"queue {queue!r} was deleted, {what}"
    return f"queue {queue!r} is there now: it was deleted and made again, {what}"
