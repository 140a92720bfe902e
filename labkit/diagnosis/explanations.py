"""What ``lab.explain`` says: reply codes and error classes in words for someone who meets them for the first time.

Data only. ``diagnosis`` finds the entry that fits.
"""

import socket
import ssl

import pika.exceptions as px
from pika.adapters.utils import connection_workflow as workflow

from labkit import errors

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
    502: "a frame held an invalid value",
    503: "commands came in an order that is not allowed",
    504: "a channel was used that is not open",
    505: "a frame came that did not belong there: often two threads on one connection",
    506: "the broker has no resources for this now",
    530: "not allowed: the virtual host is missing or not yours, or a limit is reached",
    540: "the broker does not implement this",
    541: "the broker met an error of its own",
}

# Ours: (type, what happened, who closed it, what to do). The first that fits, so a class comes before its parent.
OURS: tuple[tuple[type[BaseException], str, str, str], ...] = (
    (
        errors.MissingExtra,
        "a package that this needs is not installed",
        NOBODY,
        "install it: the error's text names the command",
    ),
    (
        errors.ConfigurationError,
        "a setting cannot be",
        NOBODY,
        "correct the setting: the error's text names it, and what is allowed",
    ),
    (
        errors.AuthenticationFailed,
        "the broker does not accept this user name and password",
        BROKER,
        "check the user name and the password; guest may log in from localhost only",
    ),
    (
        errors.AccessRefused,
        "the login is right, but this virtual host is missing or not this user's",
        BROKER,
        "check the virtual host's name, and this user's permissions on it",
    ),
    (
        errors.CertificateNotTrusted,
        "no authority that we trust signed the broker's certificate",
        CLIENT,
        "give the authority that signed it: TlsSettings.ca_file",
    ),
    (
        errors.CertificateNameMismatch,
        "the broker's certificate is for another name",
        CLIENT,
        "use the name in the certificate as the host, or set TlsSettings.server_name",
    ),
    (
        errors.CertificateExpired,
        "the broker's certificate is out of date",
        CLIENT,
        "check this machine's clock; if it is right, the broker needs a new one",
    ),
    (
        errors.CertificateNotYetValid,
        "the broker's certificate is for later",
        CLIENT,
        "check this machine's clock; if it is right, the broker needs one that is valid now",
    ),
    (
        errors.ClientCertificateMissing,
        "the broker wants a certificate of us, and we showed none",
        BROKER,
        "give one that the broker trusts: TlsSettings.cert_file and key_file",
    ),
    (
        errors.ClientCertificateRefused,
        "the broker does not take our certificate",
        BROKER,
        "give one that is valid now and signed by whom the broker trusts: TlsSettings.cert_file and key_file",
    ),
    (
        errors.NotTls,
        "what answers on that port does not speak TLS",
        CLIENT,
        "use the broker's TLS port, usually 5671; or leave out the TLS settings",
    ),
    (
        errors.TlsRequired,
        "we speak plain AMQP, and what answers on that port speaks TLS",
        BROKER,
        "give TlsSettings; or use the port for plain AMQP, usually 5672",
    ),
    (
        errors.TlsError,
        "the TLS handshake failed",
        NETWORK,
        "compare the certificates and TLS versions of both sides; see the broker's log",
    ),
    (
        errors.ConnectError,
        "no connection was made in time",
        NOBODY,
        "check host and port, and that the broker runs; then try again after a pause",
    ),
    (
        errors.NotConnected,
        "there is no open connection",
        NOBODY,
        "open it (again); what the broker had not confirmed must be sent again",
    ),
    (
        errors.ChannelLost,
        "the channel is gone",
        NOBODY,
        "repair what the broker complains about; the next call opens a new channel",
    ),
    (
        errors.PoolTimeout,
        "no connection of the pool became free in time",
        NOBODY,
        "give connections back sooner, enlarge the pool, or wait longer",
    ),
    (
        errors.TooManyWaiting,
        "too many callers wait for the pool already",
        NOBODY,
        "ask less of it, or enlarge the pool; a longer line would only wait longer",
    ),
    (
        errors.PoolClosed,
        "the pool was closed before",
        CLIENT,
        "make a new pool, or close this one later: when nobody uses it any more",
    ),
    (
        errors.LeaseError,
        "something was used by a thread or a holder it does not belong to",
        NOBODY,
        "let each thread open or lease its own, and use it only while it holds it",
    ),
    (
        errors.Unroutable,
        "no queue would have received the message, so the broker returned it",
        NOBODY,
        "declare the queue or the binding first, or correct its name; then publish again",
    ),
    (
        errors.PublishRejected,
        "the broker did not take the message",
        BROKER,
        "the queue is full, or its leader moves: publish again after a pause",
    ),
    (
        errors.OutcomeUnknown,
        "no answer came about the message: it may be in the queue, or not",
        NOBODY,
        "publish it again if the receiver recognises duplicates (message_id); else look",
    ),
    (
        errors.RpcTimeout,
        "no reply came in time",
        NOBODY,
        "see whether the other side runs; call again only if doing it twice is harmless",
    ),
    (
        errors.RemoteError,
        "the function on the other side failed",
        NOBODY,
        "read its text: the cause is in that program, or in the arguments it was given",
    ),
    (
        errors.WrongThread,
        "a call that waits was made on the I/O thread, which would wait for itself",
        CLIENT,
        "a log handler is called there: let it hand its records to a thread of its own (QueueHandler)",
    ),
    (
        errors.FrameError,
        "the bytes on the wire are not AMQP 0-9-1",
        NOBODY,
        "see what answers on that port; give each thread a connection of its own",
    ),
    (
        errors.BrokerError,
        "no broker could be had",
        NOBODY,
        "run `labkit doctor`: it says what is missing, and how to get it",
    ),
    (
        errors.DeadlineExceeded,
        "it took longer than it was given",
        CLIENT,
        "see whether the broker is slow or silent; then try again, maybe with more time",
    ),
    (
        KeyboardInterrupt,
        "somebody pressed Ctrl-C, or the stop button",
        CLIENT,
        "nothing to repair; if it came in the middle of a call, open the link again",
    ),
    (
        errors.LabkitError,
        "labkit could not do it",
        NOBODY,
        "read the error's text: it names what was tried, and the next clue",
    ),
)

TYPES: tuple[tuple[type[BaseException], str, str], ...] = (
    # the first that fits; (type, what happened, who closed it)
    *((cls, what, closed_by) for cls, what, closed_by, _ in OURS),
    (px.ConnectionClosedByClient, "this program closed the connection", CLIENT),
    (px.ChannelClosedByClient, "this program closed the channel", CLIENT),
    (px.ConnectionOpenAborted, "this program gave up while the connection was opening", CLIENT),
    (px.ConnectionBlockedTimeout, "the broker was in alarm and took no messages for longer than we wait", CLIENT),
    (px.AMQPHeartbeatTimeout, "nothing came from the broker for several heartbeats, so this side hung up", CLIENT),
    (px.ConnectionWrongStateError, "the connection had ended before this call", NOBODY),
    (px.ChannelWrongStateError, "the channel had been closed before this call", NOBODY),
    (
        px.ConsumerCancelled,
        "the broker ended the consumer: its queue was deleted, its node went away, or an acknowledgement took too long",
        BROKER,
    ),
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
    (px.StreamLostError, "the TCP link ended without a close handshake", NETWORK),
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
