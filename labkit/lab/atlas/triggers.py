"""The failures of the atlas: what happens, and the act that brings it about. ``running`` runs them."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import pika
from pika.credentials import ExternalCredentials

from labkit.lab.atlas import acts
from labkit.lab.atlas.acts import HOST, Stand
from labkit.lab.atlas.attacker import GOOD, HELLO, raw, start
from labkit.wire import Bandwidth, DropHeartbeats, Latency, LimitData, Refuse, ResetPeer, Slicer, Stall


@dataclass(frozen=True, slots=True)
class Trigger:
    """One way to fail.

    Attributes:
        name: Unique; the exception's name where the row is there for it.
        group: Where it stands in the atlas.
        when: What one does, or what happens, in words.
        act: Does it.
    """

    name: str
    group: str
    when: str
    act: Callable[[Stand], object]


OPENING, LINK, BROKER = "opening a connection", "on an open connection", "the broker"
CHANNEL, MESSAGES, CALLS, LIES = "declaring", "publishing and consuming", "calls out of place", "not RabbitMQ"
NOBODY = "nobody made this"
TLS = pika.SSLOptions(ssl.create_default_context())
_TABLE: tuple[tuple[str, str, str, Callable[[Stand], object]], ...] = (
    ("refused port", OPENING, "nothing listens on the port", acts.refused(port=1)),
    ("AMQPConnectionError", OPENING, "new links are refused (Refuse)", acts.opening_blocking(Refuse())),
    ("unknown host", OPENING, "the host's name does not resolve", acts.refused(host="nobody-made-this.invalid")),
    (
        "ProbableAuthenticationError",
        OPENING,
        "the password is wrong",
        acts.refused(credentials=pika.PlainCredentials("nobody", "at all")),
    ),
    (
        "AuthenticationError",
        OPENING,
        "a login mechanism that the broker does not offer",
        acts.refused(credentials=ExternalCredentials()),
    ),
    ("ProbableAccessDeniedError", OPENING, "the virtual host does not exist", acts.refused(virtual_host=NOBODY)),
    ("virtual host refused", OPENING, "the user has no permissions in the virtual host", acts.without_virtual_host),
    (
        "connection limit",
        OPENING,
        "one connection more than the user may have",
        acts.limited("connections", acts.second_connection),
    ),
    (
        "small frames",
        OPENING,
        "frame_max is 4096, the least that AMQP allows (RabbitMQ 4.1 and later want 8192: only their log says so)",
        acts.refused(frame_max=4096),
    ),
    (
        "IncompatibleProtocolError",
        OPENING,
        "the link is reset before the broker says a word (ResetPeer)",
        acts.opening_blocking(ResetPeer(), "Connection.Start"),
    ),
    (
        "reset at login",
        OPENING,
        "the link is reset while the login is checked (ResetPeer)",
        acts.opening_blocking(ResetPeer(), "Connection.Tune"),
    ),
    (
        "reset at the virtual host",
        OPENING,
        "the link is reset while the virtual host is entered (ResetPeer)",
        acts.opening_blocking(ResetPeer(), "Connection.OpenOk"),
    ),
    ("AMQPConnectorStackTimeout", OPENING, "nothing passes (Stall)", acts.opening(Stall())),
    ("late answers", OPENING, "answers come later than the handshake may take (Latency)", acts.opening(Latency(1.0))),
    ("narrow line", OPENING, "the line is too slow for the handshake (Bandwidth)", acts.opening(Bandwidth(100))),
    (
        "bytes one by one",
        OPENING,
        "the bytes come one by one, too slowly for the handshake (Slicer)",
        acts.opening(Slicer(1, delay=0.05)),
    ),
    (
        "AMQPConnectorTransportSetupError",
        OPENING,
        "TLS is spoken to the port for plain AMQP",
        acts.workflow(ssl_options=TLS),
    ),
    ("plain to the TLS port", OPENING, "plain AMQP is spoken to the port for TLS", acts.plain_to_the_tls_port),
    ("untrusted certificate", OPENING, "nobody that we trust signed the broker's certificate", acts.untrusted),
    (
        "AMQPConnectorSocketConnectError",
        OPENING,
        "nothing listens on the port; what Pika's workflow keeps of it",
        acts.workflow(port=1),
    ),
    (
        "AMQPConnectorAMQPHandshakeError",
        OPENING,
        "the virtual host does not exist; what Pika's workflow keeps of it",
        acts.workflow(virtual_host=NOBODY),
    ),
    (
        "AMQPConnectionWorkflowFailed",
        OPENING,
        "no host worked; what an asynchronous adapter is told",
        acts.workflow(port=1),
    ),
    ("AMQPConnectionWorkflowAborted", OPENING, "the program breaks off the opening", acts.workflow(acts.abort)),
    ("AMQPConnectorWrongState", OPENING, "the program breaks it off twice", acts.workflow(acts.abort_twice)),
    (
        "ConnectionOpenAborted",
        OPENING,
        "the program closes the connection before it is open",
        acts.on_a_loop(lambda connection, _: connection.close()),
    ),
    ("StreamLostError", LINK, "the link is cut (proxy.acts.cut)", acts.cut),
    ("reset", LINK, "the link is reset (ResetPeer)", acts.idle(ResetPeer())),
    ("end of file", LINK, "the link is closed politely (LimitData)", acts.idle(LimitData(0), heartbeat=1)),
    ("AMQPHeartbeatTimeout", LINK, "nothing passes any more (Stall)", acts.idle(Stall(), heartbeat=1)),
    (
        "dropped heartbeats",
        LINK,
        "the broker's heartbeats vanish (DropHeartbeats)",
        acts.idle(DropHeartbeats(), direction="downstream", heartbeat=1),
    ),
    ("slow close", LINK, "each side learns late that the other has closed (SlowClose)", acts.slow_close),
    ("used after a cut", LINK, "process_data_events after the link was lost", acts.used_after_a_cut),
    ("ConnectionWrongStateError", LINK, "a call on a connection that is closed", acts.blocking(acts.used_when_closed)),
    (
        "ConnectionClosedByClient",
        LINK,
        "the program closes the connection; what its callback is told",
        acts.with_channel(lambda channel, _: channel.connection.close()),
    ),
    (
        "ConnectionBlockedTimeout",
        BROKER,
        "the broker is in alarm for longer than blocked_connection_timeout",
        acts.blocked_for_too_long,
    ),
    (
        "closed by an operator",
        BROKER,
        "an operator closes the connection, with a reason",
        acts.meanwhile(lambda stand: stand.broker.close_connections("night shift"), lambda _: None),
    ),
    (
        "virtual host deleted",
        BROKER,
        "the virtual host is deleted",
        acts.meanwhile(lambda stand: stand.broker.ctl("delete_vhost", HOST), acts.virtual_host_again),
    ),
    (
        "broker shut down",
        BROKER,
        "the broker shuts down",
        acts.meanwhile(lambda stand: stand.broker.stop(), lambda stand: stand.broker.start()),
    ),
    (
        "broker killed",
        BROKER,
        "the broker is killed",
        acts.meanwhile(lambda stand: stand.broker.kill(), lambda stand: stand.broker.start()),
    ),
    (
        "broker frozen",
        BROKER,
        "the broker is frozen",
        acts.meanwhile(lambda stand: stand.broker.pause(), lambda stand: stand.broker.resume(), heartbeat=2),
    ),
    (
        "ChannelClosedByBroker",
        CHANNEL,
        "a queue that does not exist is looked for",
        acts.blocking(lambda _, channel: channel.queue_declare(NOBODY, passive=True)),
    ),
    (
        "declared differently",
        CHANNEL,
        "a queue is declared again with another argument",
        acts.blocking(acts.declared_differently),
    ),
    ("exclusive elsewhere", CHANNEL, "another connection's exclusive queue is used", acts.exclusive_elsewhere),
    (
        "reserved name",
        CHANNEL,
        "a queue is named amq.something",
        acts.blocking(lambda _, channel: channel.queue_declare("amq.mine")),
    ),
    (
        "default exchange",
        CHANNEL,
        "the default exchange is deleted",
        acts.blocking(lambda _, channel: channel.exchange_delete("")),
    ),
    ("permission", CHANNEL, "the user may not declare", acts.without_permission),
    (
        "unknown exchange type",
        CHANNEL,
        "an exchange of a type that is not installed is declared",
        acts.blocking(lambda _, channel: channel.exchange_declare(HOST, "x-none")),
    ),
    (
        "unknown queue type",
        CHANNEL,
        "a queue of a type that there is not is declared",
        acts.blocking(lambda _, channel: channel.queue_declare(HOST, durable=True, arguments={"x-queue-type": "none"})),
    ),
    (
        "channel limit",
        CHANNEL,
        "one channel more than the user may have",
        acts.limited("channels", acts.blocking(lambda connection, _: connection.channel())),
    ),
    (
        "NoFreeChannels",
        CHANNEL,
        "one channel more than the connection may have",
        acts.blocking(lambda connection, _: connection.channel(), channel_max=1),
    ),
    (
        "ChannelClosedByClient",
        CHANNEL,
        "the program closes the channel; what its callback is told",
        acts.with_channel(acts.closed_channel),
    ),
    (
        "ChannelWrongStateError",
        CHANNEL,
        "a call on a channel that is closed",
        acts.blocking(acts.channel_used_when_closed),
    ),
    ("exchange missing", MESSAGES, "a message is published to an exchange that does not exist", acts.published(NOBODY)),
    ("UnroutableError", MESSAGES, "no queue would get the message (mandatory)", acts.blocking(acts.unroutable)),
    ("NackError", MESSAGES, "the queue is full and rejects", acts.blocking(acts.rejected)),
    ("large message", MESSAGES, "a message of 17 MiB is published", acts.published(body=bytes(17 * 1024 * 1024))),
    ("large headers", MESSAGES, "the headers do not fit one frame", acts.blocking(acts.large_headers)),
    ("expiration", MESSAGES, "the message's expiration is no number", acts.published(expiration="soon")),
    ("user_id", MESSAGES, "the message's user_id is another user's", acts.published(user_id=NOBODY)),
    ("settled twice", MESSAGES, "a delivery is acknowledged twice", acts.blocking(acts.settled_twice)),
    (
        "exclusive consumer",
        MESSAGES,
        "another consumer has the queue for itself",
        acts.blocking(acts.consumed_elsewhere),
    ),
    (
        "confirms and transactions",
        MESSAGES,
        "confirms and transactions on one channel",
        acts.blocking(acts.confirms_and_transactions),
    ),
    ("get from a stream", MESSAGES, "basic_get on a stream", acts.blocking(acts.get_from_a_stream)),
    ("ConsumerCancelled", MESSAGES, "the queue of a consumer is deleted (Twisted)", acts.cancelled_in_twisted),
    ("DuplicateConsumerTag", MESSAGES, "a consumer tag is used twice on a channel", acts.blocking(acts.tag_twice)),
    (
        "tag at the broker",
        MESSAGES,
        "likewise, by a client that does not notice",
        acts.blocking(acts.tag_twice_at_the_broker),
    ),
    ("ReentrancyError", CALLS, "start_consuming in a callback", acts.blocking(acts.consuming_inside_consuming)),
    (
        "DuplicateGetOkCallback",
        CALLS,
        "a second basic_get before the first is answered",
        acts.with_channel(acts.got_twice),
    ),
    (
        "ConnectionClosedByBroker",
        CALLS,
        "a method that RabbitMQ does not implement (basic.recover)",
        acts.blocking(lambda _, channel: channel.basic_recover(requeue=False)),
    ),
    (
        "InvalidChannelNumber",
        CALLS,
        "a channel number that is none",
        acts.blocking(lambda connection, _: connection.channel(channel_number="one")),
    ),
    (
        "ShortStringTooLong",
        CALLS,
        "a routing key of 256 bytes",
        acts.blocking(lambda _, channel: channel.basic_publish("", "q" * 256, b"x")),
    ),
    (
        "UnsupportedAMQPFieldException",
        CALLS,
        "a header that AMQP cannot carry",
        acts.blocking(
            lambda _, channel: channel.basic_publish("", "q", b"x", pika.BasicProperties(headers={"x": object()}))
        ),
    ),
    (
        "BodyTooLongError",
        LIES,
        "a message longer than announced comes",
        acts.lied_to("Channel.Open", GOOD["Channel.Open"] + acts.RETURNED),
    ),
    ("InvalidFieldTypeException", LIES, "a value of an unknown type comes", acts.lied_to(HELLO, start(b"\x01k\x00"))),
    (
        "InvalidFrameError",
        LIES,
        "a frame without its end mark comes",
        acts.lied_to("Channel.Open", raw(b"", kind=8, end=b"\x00")),
    ),
    (
        "MethodNotImplemented",
        LIES,
        "confirms, where they are not offered",
        acts.lied_to(HELLO, start(), lambda _, channel: channel.confirm_delivery()),
    ),
    ("ProtocolVersionMismatch", LIES, "another version of AMQP answers", acts.lied_to(HELLO, start(version=(8, 0)))),
)
TRIGGERS = {row[0]: Trigger(*row) for row in _TABLE}
