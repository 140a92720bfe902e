"""Every private attribute of Pika that labkit reaches for: where it is, who needs it, what would break without it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needed:
    """One private attribute.

    Attributes:
        where: ``module:Class`` of Pika that has it.
        name: The attribute.
        used_in: The modules of labkit that spell its name.
        otherwise: What would break without it, and why nothing public does.
        since: The first Pika that has it; empty: every one that labkit takes.
        until: The first Pika that has it no longer, and needs it no longer; empty: none.
    """

    where: str
    name: str
    used_in: tuple[str, ...]
    otherwise: str
    since: str = ""
    until: str = ""


_BLOCKING = "pika.adapters.blocking_connection:BlockingConnection"


_CHANNEL = "pika.adapters.blocking_connection:BlockingChannel"


_BASE = "pika.adapters.base_connection:BaseConnection"


_CONNECTION = "pika.connection:Connection"


_LOOP = "pika.adapters.select_connection:IOLoop"


_POLLER = "pika.adapters.select_connection:_PollerBase"


_CONNECTOR = "pika.adapters.utils.connection_workflow:AMQPConnector"


NEEDED = (
    Needed(
        _CONNECTION,
        "_terminate_stream",
        ("connector/private_pika", "direct/sync_link", "direct/aio_link", "connector/twisted", "connector/callbacks"),
        "A dead link would keep its descriptor, and a call its caller, until Pika's own heartbeat check: up to "
        "2 x (heartbeat + 5) seconds. Pika's public close() waits for the other side's answer.",
    ),
    Needed(
        "pika.adapters.select_connection:SelectConnection",
        "_get_write_buffer_size",
        ("connector/private_pika",),
        "Publishing to a broker that does not read would fill the memory: Pika buffers without limit, and its public "
        "bytes_sent counts what was buffered.",
    ),
    Needed(
        _BASE,
        "_transport",
        (
            "connector/private_pika",
            "direct/sync_link",
            "connector/abandon",
            "connector/twisted",
            "connector/callbacks",
            "lab/exercises/notebook_05",
        ),
        "The way to the socket, below; and whether there is one yet, when an attempt is to end.",
    ),
    Needed(
        _CONNECTION,
        "_frame_buffer",
        ("connector/private_pika",),
        "A monitor could not read what waits in the socket of a BlockingConnection whose thread is busy: the first "
        "bytes of its next frame are here.",
    ),
    Needed(
        "pika.adapters.utils.io_services_utils:_AsyncTransportBase",
        "_sock",
        ("connector/private_pika", "direct/sync_link", "connector/abandon", "lab/exercises/notebook_05"),
        "In a child after a fork the parent's link would stay up after the parent dropped it; a link that failed in "
        "one of Pika's callbacks, or an interrupted BlockingConnection, could not be closed; its owner could not wait "
        "without Pika reading.",
    ),
    Needed(
        _BLOCKING,
        "_impl",
        ("connector/private_pika", "direct/sync_link", "connector/abandon", "factory"),
        "No time limit for a BlockingConnection's calls, no way to end it; nobody could say how long its broker's "
        "certificate holds; an alarm would be heard of only once the publish that it holds up has ended: the public "
        "callbacks run in process_data_events().",
    ),
    Needed(
        "pika.adapters.twisted_connection:TwistedProtocolConnection",
        "_impl",
        ("connector/private_pika", "factory", "connector/twisted", "lab/adapters"),
        "Twisted's connection would lose the error of its handshake, outlive a deadline, and tell of no alarm; the "
        "bench could not drive it as the others. Publicly it has no callbacks, and its Deferred fails with a number.",
    ),
    Needed(
        _CONNECTION,
        "_error",
        ("connector/twisted",),
        "Whatever ended a connection on Twisted, the factory's listeners would hear of ConnectionDone. Publicly only "
        "the Deferred closed has the reason, and that is its owner's.",
    ),
    Needed(
        _BLOCKING,
        "_ready_events",
        ("direct/sync_link",),
        "An interrupt while waiting would cost the link: see direct.sync_link.",
    ),
    Needed(_BLOCKING, "_channels_pending_dispatch", ("direct/sync_link",), "As _ready_events."),
    Needed(
        _BLOCKING,
        "_event_dispatch_suspend_depth",
        ("direct/sync_link",),
        "A callback could not be told from its owner.",
    ),
    Needed(
        _CHANNEL, "_closing_reason", ("direct/sync_link",), "Errors would say that a channel is closed, and not why."
    ),
    Needed(
        _CHANNEL,
        "_consumer_infos",
        ("direct/sync_link",),
        "Messages that nobody has tried would be rejected when consume() ends, and count towards a quorum queue's "
        "delivery limit: so BlockingChannel.close() does.",
    ),
    Needed(
        _CHANNEL,
        "_impl",
        ("direct/sync_link", "lab/atlas/acts"),
        "As _consumer_infos; and the atlas could not show what the broker says of one tag used twice.",
    ),
    Needed(
        "pika.channel:Channel",
        "_consumers",
        ("lab/atlas/acts",),
        "Pika would refuse the second consumer of a tag before the broker does.",
    ),
    Needed(
        _CHANNEL,
        "_flush_output",
        ("direct/sync_link",),
        "consume(timeout=) would end late, or lose its link, when the broker is slow to close the channel.",
    ),
    Needed(
        "pika.channel:Channel",
        "_consumers_with_noack",
        ("connector/private_pika",),
        "Pika would reject what comes after a consumer was cancelled; from a stream, RabbitMQ 3.10 ends the connection "
        "for that.",
        until="1.5",
    ),
    Needed(
        "pika.channel:Channel",
        "_on_close_from_broker",
        ("connector/private_pika",),
        "When the broker closes a channel, nobody could say whether that is over a message or over another call: Pika "
        "keeps the code and the text, and the text for a missing exchange is the same.",
    ),
    Needed(
        _LOOP, "_get_remaining_interval", ("direct/sync_link",), "As _ready_events: Pika's own timers would be missed."
    ),
    Needed(_LOOP, "_poller", ("connector/abandon",), "The way to the next one."),
    Needed(_POLLER, "_r_interrupt", ("connector/abandon",), "As _w_interrupt."),
    Needed(_POLLER, "_w_interrupt", ("connector/abandon",), "An interrupted loop would keep this descriptor."),
    Needed(
        _CONNECTION,
        "_on_stream_terminated",
        ("connector/abandon", "connector/callbacks", "direct/aio_link"),
        "The channels of a link that was cut off inside Pika would not be told; "
        "an adapter would end at its first address.",
    ),
    Needed(
        _BASE,
        "_adapter_emit_data",
        ("connector/private_pika",),
        "Each frame would be a system call, and a TLS record, of its own: three for a small message.",
    ),
    Needed(
        _CONNECTION,
        "_send_message",
        ("connector/private_pika",),
        "A message would cost twice the processor's time before it is written: Pika makes its frames one by one.",
    ),
    Needed(_CONNECTION, "_body_max_length", ("connector/private_pika",), "As _send_message: how large one frame is."),
    Needed(
        _BASE,
        "_proto_connection_made",
        ("connector/private_pika",),
        "Two reads of each three would find nothing, or 4096 bytes of a large message.",
    ),
    Needed(
        _CONNECTION,
        "_on_data_available",
        ("connector/private_pika",),
        "A message whose headers Pika cannot read would end this link, and each later one on which it is delivered.",
    ),
    Needed(_CONNECTION, "_process_frame", ("connector/private_pika",), "As _on_data_available: where Pika goes on."),
    Needed(
        _CONNECTION, "_init_connection_state", ("connector/private_pika",), "As _on_data_available: where a link ends."
    ),
    Needed(_CONNECTION, "_set_connection_state", ("connector/callbacks",), "As _on_stream_terminated."),
    Needed(
        _BASE,
        "_adapter_connect_stream",
        ("connector/callbacks",),
        "Adapters would walk the addresses Pika's way, without a deadline.",
    ),
    Needed(
        _BASE,
        "_nbio",
        ("connector/callbacks",),
        "Each kind of loop would need a bring-up of its own: the public ioloop is the bare loop, with its own verbs.",
    ),
    Needed(_BASE, "_on_connection_workflow_done", ("connector/callbacks",), "As _adapter_connect_stream."),
    Needed(
        _BASE,
        "_adapter_disconnect_stream",
        ("connector/twisted",),
        "A goodbye in Twisted would cut off what is still unsent.",
    ),
    Needed(
        _BASE,
        "_connection_workflow",
        ("connector/callbacks", "connector/private_pika"),
        "As _adapter_connect_stream, and as _connector.",
    ),
    Needed(
        _BASE,
        "_start_connection_workflow",
        ("connector/libev", "connector/abandon"),
        "LibevConnection.create_connection() could not be; and an interrupt while a BlockingConnection looks its "
        "address up could leave a thread that never ends.",
    ),
    Needed(
        "pika.adapters.utils.connection_workflow:AMQPConnectionWorkflow",
        "_connector",
        ("connector/abandon", "connector/private_pika"),
        "An interrupt, an error or a fork during a connect would leave a socket open.",
    ),
    Needed(
        "pika.adapters.thread_safe_connection:Connection",
        "_connection",
        ("factory", "connector/private_pika"),
        "Nobody would be warned that the broker's certificate ends soon, and a monitor could not watch it.",
        since="1.5",
    ),
    Needed(_CONNECTOR, "_task_ref", ("connector/abandon", "connector/private_pika"), "As _connector."),
    Needed(
        "pika.adapters.utils.io_services_utils:_AsyncServiceAsyncHandle",
        "_cancel",
        ("connector/private_pika",),
        "As _connector, while TLS is negotiated.",
    ),
)
