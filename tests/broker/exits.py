"""Every way by which a message leaves labkit, behind one question: what becomes of this one?"""

import asyncio
import threading
from contextlib import ExitStack, contextmanager

from labkit import (
    AsyncConnection,
    ChannelPool,
    ConfigurationError,
    Connection,
    ConnectionManager,
    ConnectionPool,
    Publisher,
    Queue,
    SyncConnection,
    Timeline,
)

TIMEOUT = 30.0
SENT = "sent"


class Exits:
    """A connection of each kind, open.

    Attributes:
        queue: Where the messages go.
        timeline: What happens to all connections but the ``AsyncConnection``, which tells nothing.
    """

    def __init__(self, settings, queue, stack):
        self.queue = queue
        self.timeline = Timeline()
        self.lost = []  # what ended the AsyncConnection
        listeners = [self.timeline]
        enter = stack.enter_context
        connection = enter(Connection(settings, listeners=listeners))
        enter(connection.channel()).declare(Queue(queue))
        plain, confirming = enter(connection.channel()), enter(connection.channel(confirm=True))
        recovering = enter(Connection(settings, recovery=True, listeners=listeners))
        publisher = enter(Publisher(recovering))
        bare = enter(Publisher(recovering, stamp=False))
        manager = enter(ConnectionManager(settings, listeners=listeners))
        connections, channels = enter(ConnectionPool(settings)), enter(ChannelPool(settings))
        sync = enter(SyncConnection(settings, listeners=listeners))
        awaited, self._loop = AsyncConnection(settings, on_close=lambda _, reason: self.lost.append(reason)), None
        enter(self._running_loop())
        self._await(awaited.open())
        stack.callback(lambda: self._await(awaited.close()))
        key = {"routing_key": queue}
        self._all = {
            "Channel": lambda message: plain.publish(message, **key),
            "Channel that confirms": lambda message: confirming.publish(message, **key),
            "Publisher": lambda message: publisher.publish(message, **key).result(),
            "Publisher without stamps": lambda message: bare.publish(message, **key).result(),
            "Publisher, one of many": lambda message: publisher.publish_many(["x", message, "x"], **key)[1].result(),
            "ConnectionManager": lambda message: manager.publish("", queue, message).result(),
            "ConnectionPool": lambda message: connections.execute(lambda channel: channel.publish(message, **key)),
            "ChannelPool": lambda message: channels.execute(lambda channel: channel.publish(message, **key)),
            "ChannelPool that confirms": lambda message: channels.execute(
                lambda channel: channel.publish(message, **key), confirm=True
            ),
            "SyncConnection": lambda message: sync.publish(queue, message),
            "AsyncConnection": lambda message: self._await(awaited.publish(queue, message)),
        }
        self._mark = self.timeline.mark()

    @property
    def ways(self):
        return tuple(self._all)

    def publish(self, way, message):
        self._all[way](message)

    def send(self, message):
        """Return what became of *message* by each way: "sent", or the field that a ConfigurationError names."""
        return {way: _outcome(publish, message) for way, publish in self._all.items()}

    def losses(self):
        """What was lost since they were opened: connections and channels."""
        kinds = ("ConnectionLost", "ChannelClosed", "ConnectionGivenUp")
        events = self.timeline.events[self._mark :]
        return [*self.lost, *(each for each in events if type(each).__name__ in kinds)]

    def _await(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT)

    @contextmanager
    def _running_loop(self):
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(TIMEOUT)
            self._loop.close()


@contextmanager
def every_exit(settings, queue="exits"):
    """All of them, open on *settings*; closed at the end."""
    with ExitStack() as stack:
        yield Exits(settings, queue, stack)


def _outcome(publish, message):
    try:
        publish(message)
    except ConfigurationError as exc:
        return exc.field
    return SENT
