"""What lives on a connection, as the lifecycle sees it: the :class:`Role` protocol, and :class:`Roles`, all of them.

On the I/O thread.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from labkit.concurrency.bell import PendingCall
from labkit.connection.link import Link

LOGGER = logging.getLogger(__name__)

Done = Callable[[BaseException | int], None]


class Role(Protocol):
    """What lives on a connection: a publisher, a consumer, the topology. All of it runs on the I/O thread.

    It must not hold the ``Connection``, or a forgotten one could not be collected.
    """

    def restore(self, link: Link, done: Callable[[BaseException | int], None]) -> None:
        """Open channels on the new *link*, declare, consume, send again; return at once.

        Later, once: ``done(n)`` when all is there, with the number of messages sent again; or ``done(error)``, and
        the attempt has failed. The connection is not OPEN, and nobody is told so, before every role is done.
        One that makes many round trips notes each with ``link.note_step()``: a link without any for ``stack_timeout``
        is given up.
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


class Restored:
    """How far a bring-up is with the roles.

    Attributes:
        roles: On its newest link: restored, or being restored.
        replayed: Messages sent again, on all of its links.
    """

    def __init__(self) -> None:
        self.roles: list[Role] = []
        self.replayed = 0


class Roles:
    """The roles of one connection, in the order in which they are restored. Any thread may look at them.

    Args:
        first: What there is from the beginning.
    """

    def __init__(self, first: Iterable[Role] = ()) -> None:
        self._roles = list(first)

    def __len__(self) -> int:
        return len(self._roles)

    def __iter__(self) -> Iterator[Role]:
        return iter(list(self._roles))

    def add(self, role: Role) -> bool:
        """Restore *role* from now on, after the others; False: it is one of them."""
        if role in self._roles:
            return False
        self._roles.append(role)
        return True

    def remove(self, role: Role) -> None:
        """Restore *role* no more."""
        if role in self._roles:
            self._roles.remove(role)

    def missing(self, restored: Restored) -> list[Role]:
        """Return those that are yet to be restored."""
        return [each for each in self._roles if each not in restored.roles]

    def restore(self, restored: Restored, link: Link, over: PendingCall) -> None:
        """Restore one after the other on *link*, those that are added meanwhile too; then settle *over*."""
        if not link.fail_when_lost(over):  # a link that ends meanwhile answers no role
            return
        role = next(iter(self.missing(restored)), None)
        if role is None:
            over.settle()
            return
        restored.roles.append(role)

        def done(told: BaseException | int) -> None:
            if isinstance(told, BaseException):
                over.settle(error=told)
                return
            restored.replayed += told
            link.note_step()
            self.restore(restored, link, over)

        begin_restoring(role, link, done)

    def lost(self, reason: BaseException) -> None:
        """Tell all that the link is gone, and another may follow."""
        self._tell(lambda role: role.lost(reason))

    def ended(self, reason: BaseException | None) -> None:
        """Tell all that no link will follow."""
        self._tell(lambda role: role.ended(reason))

    def _tell(self, tell: Callable[[Role], None]) -> None:
        for role in self:
            try:
                tell(role)
            except Exception:  # one broken role must keep neither the others nor recovery from going on
                LOGGER.exception("a role failed to take note of the end of its link")
