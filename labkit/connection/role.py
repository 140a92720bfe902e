"""What the lifecycle asks of whatever lives on a connection: the :class:`Role` protocol. On the I/O thread."""

from collections.abc import Callable
from typing import Protocol

from labkit.connection.link import Link

Done = Callable[[BaseException | int], None]


class Role(Protocol):
    """What lives on a connection: a publisher, a consumer, the topology. All of it runs on the I/O thread.

    It must not hold the ``Connection``, or a forgotten one could not be collected.
    """

    def restore(self, link: Link, done: Callable[[BaseException | int], None]) -> None:
        """Open channels on the new *link*, declare, consume, send again; return at once.

        Later, once: ``done(n)`` when all is there, with the number of messages sent again; or ``done(error)``, and
        the attempt has failed. The connection is not OPEN, and nobody is told so, before every role is done.
        One that makes many round trips notes each in ``link.stepped_at``: a link without any for ``stack_timeout`` is
        given up.
        """

    def lost(self, reason: BaseException) -> None:
        """The link is gone; another may follow."""

    def ended(self, reason: BaseException | None) -> None:
        """No link will follow, unless somebody opens the connection again: it failed, or (None) was closed."""


def begin_restoring(role: Role, link: Link, done: Callable[[BaseException | int], None]) -> None:
    """Have *role* restored; an error of its own is its answer."""
    try:
        role.restore(link, done)
    except Exception as exc:  # noqa: BLE001 - told to whoever waits
        done(exc)
