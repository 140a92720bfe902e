"""What labkit's objects have for a monitor: what they are made of, and where their events come from.

``labkit.monitor`` watches whatever has these methods, and knows none of the classes above it.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from labkit.events import Listener


@dataclass(frozen=True, slots=True)
class Watched:
    """What an object is made of at this moment.

    Attributes:
        connections: A ``labkit.Connection`` each, or the ``Traffic`` of one of Pika's.
        publishers: A ``labkit.Publisher`` each.
        consumers: A ``labkit.Consumer`` each.
        pools: Whatever has ``get_stats()`` and ``max_size``.
        are_replaced: Connections that end are replaced by others: that one of them has closed means nothing.
    """

    connections: tuple[Any, ...] = ()
    publishers: tuple[Any, ...] = ()
    consumers: tuple[Any, ...] = ()
    pools: tuple[Any, ...] = ()
    are_replaced: bool = False


@runtime_checkable
class Watchable(Protocol):
    """An object that a monitor can watch. All three are called on any thread, and do no I/O."""

    def _watched(self) -> Watched:
        """Return the parts of this moment."""

    def _listen(self, listener: Listener) -> None:
        """Tell *listener* of every event from now on, also of parts to come."""

    def _unlisten(self, listener: Listener) -> None:
        """Tell it no more."""
