"""Declare what is described, and await the broker's word: a queue, an exchange or a binding, with its arguments."""

from labkit.connection.channel import QueueState, check_entity
from labkit.content.sendable import frame_max_of, written_arguments
from labkit.direct.aio_link import AsyncLink, LinkChannel
from labkit.topology import Binding, Exchange, Queue


async def declare_on(link: AsyncLink, what: Queue | Exchange | Binding) -> QueueState | None:
    """Declare *what*; errors as :meth:`LinkChannel.ask`."""
    check_entity("declare", what)
    arguments = written_arguments(what.arguments, frame_max_of(link.raw))
    channel = await LinkChannel.open(link)  # its own: an error such as 406 closes the channel that asked
    raw = channel.raw
    try:
        if isinstance(what, Queue):
            queue = what
            frame = await channel.ask(
                "declare",
                lambda done: raw.queue_declare(
                    queue.name, False, queue.durable, queue.exclusive, queue.auto_delete, arguments, done
                ),
            )
            return QueueState(str(frame.method.queue), frame.method.message_count, frame.method.consumer_count)
        if isinstance(what, Exchange):
            exchange = what
            await channel.ask(
                "declare",
                lambda done: raw.exchange_declare(
                    exchange.name,
                    exchange.type,
                    False,
                    exchange.durable,
                    exchange.auto_delete,
                    exchange.internal,
                    arguments,
                    done,
                ),
            )
            return None
        bind = raw.queue_bind if what.kind == "queue" else raw.exchange_bind
        ends = what.destination, what.source, what.routing_key
        await channel.ask("declare", lambda done: bind(*ends, arguments, done))
        return None
    finally:
        channel.close_soon()
