"""The bench's RabbitMQ: find it, start it, break it. One interface, three backends (compose, local, URL)."""

from labkit.lab.brokers.discovery import down, find, is_possible, own, up
from labkit.lab.brokers.engine import engine_version
from labkit.lab.brokers.interface import Broker, ConnectionInfo

__all__ = ["Broker", "ConnectionInfo", "down", "engine_version", "find", "is_possible", "own", "up"]
