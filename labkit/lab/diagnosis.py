"""Explain an error to a learner: what happened, who closed it, what to do. Pure functions, no I/O.

The texts hold no port, time or id, so a notebook may print them and compare. What the broker said is quoted: its texts
are the same on RabbitMQ 3.10 to 4.3.
"""

import re
import socket
import ssl
from dataclasses import dataclass

import pika.exceptions as px
from pika.adapters.utils import connection_workflow as workflow

from labkit import errors
from labkit.errors import Kind, classify
from labkit.verdicts import PEER_GONE, reply_code, root_cause

CLIENT, BROKER, NETWORK, NOBODY = "client", "broker", "network", "nobody"

# AMQP 0-9-1, section 1.2 (Constants), in words for someone who meets them for the first time.
CODES = {
    200: "the broker closed it in good order",
    311: "the message is larger than the broker takes",
    312: "no queue would have received the message",
    313: "nobody is there to consume the message",
    320: "the broker closed the connection on purpose: it shuts down, or an operator asked for it",
    402: "the virtual host's path is not valid",
    403: "the broker knows you, but you may not do this; or it does not accept the login",
    404: "what you named does not exist",
    405: "another connection holds it exclusively",
    406: "it exists with other properties, or the broker did not expect this now",
    501: "the broker could not read a frame",
    502: "a frame held a value that cannot be",
    503: "commands came in an order that is not allowed",
    504: "a channel was used that is not open",
    505: "a frame came that did not belong there: often two threads on one connection",
    506: "the broker has no resources for this now",
    530: "not allowed: the virtual host is missing or not yours, or a limit is reached",
    540: "the broker does not implement this",
    541: "the broker met an error of its own",
}

_TYPES: tuple[tuple[type[BaseException], str, str], ...] = (
    # the first that fits; (type, what happened, who closed it)
    (errors.ConfigurationError, "a setting cannot be", NOBODY),
    (errors.PoolTimeout, "no connection of the pool became free in time", NOBODY),
    (errors.TooManyWaiting, "too many callers wait for the pool already", NOBODY),
    (errors.PoolClosed, "the pool was closed before", CLIENT),
    (errors.LeaseError, "something was used by a thread or a holder it does not belong to", NOBODY),
    (errors.Unroutable, "no queue would have received the message, so the broker returned it", NOBODY),
    (errors.PublishRejected, "the broker did not take the message", NOBODY),
    (errors.RpcTimeout, "no reply came in time", NOBODY),
    (errors.RemoteError, "the function on the other side failed", NOBODY),
    (errors.FrameError, "the bytes on the wire are not AMQP 0-9-1", NOBODY),
    (errors.BrokerError, "no broker could be had", NOBODY),
    (errors.DeadlineExceeded, "it took longer than it was given", CLIENT),
    (errors.NotConnected, "there is no open connection", NOBODY),
    (errors.ChannelLost, "the channel is gone", NOBODY),
    (px.ConnectionClosedByClient, "this program closed the connection", CLIENT),
    (px.ChannelClosedByClient, "this program closed the channel", CLIENT),
    (px.ConnectionOpenAborted, "this program gave up while the connection was opening", CLIENT),
    (px.ConnectionBlockedTimeout, "the broker was in alarm and took no messages for longer than we wait", CLIENT),
    (px.AMQPHeartbeatTimeout, "nothing came from the broker for several heartbeats, so this side hung up", CLIENT),
    (px.ConnectionWrongStateError, "the connection had ended before this call", NOBODY),
    (px.ChannelWrongStateError, "the channel had been closed before this call", NOBODY),
    (px.ConsumerCancelled, "the broker ended the consumer: its queue is gone", BROKER),
    (px.UnroutableError, "no queue would have received the message, so the broker returned it", NOBODY),
    (px.NackError, "the broker did not take the message", NOBODY),
    (px.NoFreeChannels, "every channel number of this connection is in use", NOBODY),
    (px.ReentrancyError, "a wait was started from inside a callback", NOBODY),
    (
        px.IncompatibleProtocolError,
        "the other side hung up before it spoke AMQP: still booting, or not a broker",
        NETWORK,
    ),
    (px.AuthenticationError, "the broker offers no login mechanism that we can use", NOBODY),
    (px.ProbableAuthenticationError, "the link ended while we were logging in", NETWORK),
    (px.ProbableAccessDeniedError, "the link ended while we were entering the virtual host", NETWORK),
    (px.StreamLostError, "the TCP link ended without a goodbye", NETWORK),
    (workflow.AMQPConnectorStackTimeout, "something accepted the connection and then stayed silent", CLIENT),
    (socket.gaierror, "the host name does not resolve", NOBODY),
    (ConnectionRefusedError, "nothing listens on that port", NOBODY),
    (ConnectionResetError, "the other side reset the TCP link", NETWORK),
    (BrokenPipeError, "the other side had gone when we wrote", NETWORK),
    (TimeoutError, "no answer came in time: packets are lost, or the host is not there", CLIENT),
    (ssl.SSLCertVerificationError, "the broker's certificate did not pass", CLIENT),
    (ssl.SSLError, "the TLS handshake failed", NETWORK),
    (FileNotFoundError, "a file is missing", NOBODY),
    (OSError, "the network refused it", NETWORK),
    (px.AMQPConnectionError, "the connection failed", NETWORK),
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an error means. ``str()`` is three or four lines that stay the same on every machine.

    Attributes:
        error: The error's class.
        what: What happened.
        said: The broker's own words, where it gave any; else empty.
        closed_by: ``client``, ``broker``, ``network`` or ``nobody``.
        advice: What to do.
        kind: What a retry would meet.
    """

    error: str
    what: str
    said: str
    closed_by: str
    advice: str
    kind: Kind

    def __str__(self) -> str:
        lines = [
            f"{self.error}: {self.what}",
            f"the broker says: {self.said}" if self.said else "",
            f"closed by: {self.closed_by} ({self.kind.value})",
            f"what to do: {self.advice}",
        ]
        return "\n".join(line for line in lines if line)

    def __repr__(self) -> str:
        return str(self)


def explain(error: BaseException) -> Explanation:
    """Say what happened, who closed it (client, broker, network, nobody) and what to do."""
    verdict = classify(error)
    # Our own refusals (AuthenticationFailed ...) are verdicts; what happened is told by what they were raised from.
    told = error.__cause__ if isinstance(error, errors.ConnectError) and error.__cause__ else error
    cause = root_cause(told)
    code = reply_code(told)
    if code is not None:
        what, closed_by = CODES.get(code, "the broker gave a reason of its own"), BROKER
        if isinstance(cause, px.ProbableAuthenticationError):
            what = "the broker does not accept this user name and password"
        what = f"{what} ({code})"
        if isinstance(cause, px.ConnectionClosedByClient | px.ChannelClosedByClient):
            what, closed_by = _by_type(cause)
    else:
        what, closed_by = _by_type(cause)
        if isinstance(cause, px.IncompatibleProtocolError) and verdict.kind is Kind.REFUSED:
            what, closed_by = "the broker broke off the TLS handshake: it wants another certificate of us", BROKER
    said = _words(cause) if closed_by == BROKER else ""
    return Explanation(type(error).__name__, what, said, closed_by, verdict.advice, verdict.kind)


# Pika's "probable" errors hold the broker's close as text: ("ConnectionClosedByBroker: (530) 'NOT_ALLOWED - ...'",)
_QUOTED = re.compile(r"""\(\d{3}\) (['"])(?P<text>.*?)\1""")


def _words(cause: BaseException) -> str:
    text = getattr(cause, "reply_text", None)
    if isinstance(text, str):
        return text
    quoted = _QUOTED.search(str(cause))
    return quoted["text"] if quoted else ""


def _by_type(cause: BaseException) -> tuple[str, str]:
    if isinstance(cause, ValueError) and PEER_GONE in str(cause):
        return "the other side hung up as soon as it had accepted", NETWORK
    for cls, what, closed_by in _TYPES:
        if isinstance(cause, cls):
            return what, closed_by
    return "the program failed by itself; no connection is to blame", NOBODY
