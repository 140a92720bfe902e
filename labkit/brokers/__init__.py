"""The bench's RabbitMQ: find it, start it, break it. One interface, three backends (compose, local, URL)."""

from labkit.extras import needs

with needs("brokers"):
    from labkit.brokers.discovery import down, find, is_possible, own, up
    from labkit.brokers.engine import engine_version
    from labkit.brokers.interface import Broker, ConnectionInfo

__all__ = ["Broker", "ConnectionInfo", "down", "engine_version", "find", "is_possible", "own", "up"]
