"""Remote procedure calls and notifications that interoperate with oslo.messaging, on labkit's own connections.

``Transport("rabbit://...")`` is the way to the broker, and ``Transport("memory://")`` needs none. ``RPCClient`` calls,
``RPCServer`` serves, ``Notifier`` tells and ``NotificationListener`` hears.
"""

from labkit.errors import RemoteError, RpcTimeout, Unroutable
from labkit.rpc.client import RPCClient
from labkit.rpc.context import ConnectionContext
from labkit.rpc.driver import Driver
from labkit.rpc.failures import (
    InvalidRPCConnectionReuse,
    InvalidTarget,
    NoSuchMethod,
    TransientQueuesForbidden,
    UnsupportedVersion,
)
from labkit.rpc.notifications import NotificationListener, NotificationResult, Notifier
from labkit.rpc.options import RabbitOptions
from labkit.rpc.serializer import Serializer
from labkit.rpc.server import RPCServer
from labkit.rpc.target import Target
from labkit.rpc.transport import Transport

__all__ = [
    "ConnectionContext",
    "Driver",
    "InvalidRPCConnectionReuse",
    "InvalidTarget",
    "NoSuchMethod",
    "NotificationListener",
    "NotificationResult",
    "Notifier",
    "RPCClient",
    "RPCServer",
    "RabbitOptions",
    "RemoteError",
    "RpcTimeout",
    "Serializer",
    "Target",
    "TransientQueuesForbidden",
    "Transport",
    "Unroutable",
    "UnsupportedVersion",
]
