"""Choose ports on this machine's loopback address. No state."""

import os
import random
import socket
from collections.abc import Collection

from labkit.errors import BrokerError

LOOPBACK = "127.0.0.1"
AMQP_DEFAULT = 5672
AMQPS_DEFAULT = 5671
MANAGEMENT_DEFAULT = 15672
# Below the range that systems take for outgoing connections (Linux 32768, others 49152): a broker that
# was killed must get its port back, and while it is down any program's connection could land there.
# Even our own look: a connect to a port of that range may be given the same port and meet itself.
OURS = range(20000, 32000)


def is_free(port: int) -> bool:
    """Return whether nobody listens on *port* here, and we could."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        # A listener on every address lets some systems bind the loopback one as well: ask it too.
        if probe.connect_ex((LOOPBACK, port)) == 0:
            return False
    with socket.socket() as probe:
        if os.name != "nt":
            # Connections that a former broker closed rest on its port for a minute; a listener can
            # still be opened there, and RabbitMQ does it this way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return *count* different ports that nobody has now.

    Something may take one before it is used: whoever uses them retries its start.

    Raises:
        BrokerError: this machine has not that many left.
    """
    found: list[int] = []
    for port in random.sample(OURS, len(OURS)):
        if len(found) == count:
            return found
        if is_free(port):
            found.append(port)
    raise BrokerError(f"fewer than {count} of the ports {OURS[0]} to {OURS[-1]} are free")


def choose(*preferred: int, but_not: Collection[int] = ()) -> list[int]:
    """Return a port for each of *preferred*: that one where it is free (0 is never), else any free one.

    All of them differ, from *but_not* too: RabbitMQ starts with two listeners on one port, and serves only the first.

    Raises:
        BrokerError: this machine has not that many left.
    """
    chosen: list[int] = []
    for port in preferred:
        if port and port not in {*chosen, *but_not} and is_free(port):
            chosen.append(port)
        else:
            any_free = free_ports(len(preferred) + len(but_not))
            chosen.append(next(each for each in any_free if each not in {*chosen, *but_not}))
    return chosen
