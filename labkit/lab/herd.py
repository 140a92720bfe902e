"""Many clients that lost one broker: when does each come back? Virtual time, so a long outage costs nothing. No I/O.

Each client is the real :func:`labkit.call_with_retry` on a clock of its own and a random source seeded by its number,
so the same herd gives the same numbers on every machine and every Python.
"""

import random

from labkit.errors import ConfigurationError
from labkit.retry import Backoff, FakeClock, call_with_retry

PATIENCE = 600.0  # seconds after the outage until a client gives up


def comebacks(backoff: Backoff, *, clients: int = 100, outage: float = 30.0, seed: int = 0) -> list[float]:
    """Return when each client was connected again, in seconds since the broker is back; one that gave up is missing.

    All lose their link at the same moment and try at once. Nobody listens for *outage* seconds.

    Args:
        backoff: The pauses of every client.
        clients: How many.
        outage: Seconds.
        seed: Another one gives another herd of the same kind.

    Raises:
        ConfigurationError: *clients* or *outage* is below 1 or 0.
    """
    if clients < 1:
        raise ConfigurationError(f"clients: {clients!r} is not allowed; allowed: 1 or more")
    if not 0 <= outage < float("inf"):
        raise ConfigurationError(f"outage: {outage!r} is not allowed; allowed: seconds, 0 or more")
    # A number, not a tuple: seeding by anything else depends on the hash, which differs from run to run.
    herd = [_comeback(backoff, outage, random.Random(seed * 1_000_003 + client)) for client in range(clients)]
    return sorted(time for time in herd if time is not None)


def _comeback(backoff: Backoff, outage: float, rng: random.Random) -> float | None:
    clock = FakeClock()

    def connect() -> float:
        if clock.now() < outage:
            raise ConnectionRefusedError("nobody listens")
        return clock.now() - outage

    try:
        return call_with_retry(connect, deadline=outage + PATIENCE, backoff=backoff, clock=clock, rng=rng)
    except ConnectionRefusedError:
        return None
