"""The bench's RabbitMQ: find it, start it, break it. One interface, three backends (compose, local, URL)."""

from labkit.lab.brokers.discovery import down, find, own, up
from labkit.lab.brokers.interface import Broker, ConnectionInfo

__all__ = ["Broker", "ConnectionInfo", "down", "find", "own", "up"]
