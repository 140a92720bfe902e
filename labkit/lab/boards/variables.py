"""What a notebook's cells have named that holds connections, as one thing for a monitor to watch. Opens nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from labkit.connector.private_pika import wire_of
from labkit.events import Listener
from labkit.watched import Watchable, Watched

HISTORY: Final = ("In", "Out")  # IPython's own: what a cell has shown once is no variable
MOST_INSIDE: Final = 200  # of a list or a dictionary; a class opens a few dozen connections at most

Namespace = Callable[[], Mapping[str, Any]]


def of_the_notebook() -> Mapping[str, Any]:
    """Return the variables of the cells; none outside IPython."""
    from IPython import get_ipython  # late: a lab is usable where IPython is not installed

    shell = get_ipython()
    return {} if shell is None else shell.user_ns


def values_of(namespace: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what the variables hold, and what the lists and dictionaries among them hold."""
    for name, value in list(namespace.items()):
        if name.startswith("_") or name in HISTORY:
            continue
        if isinstance(value, dict):
            yield from list(value.values())[:MOST_INSIDE]
        elif isinstance(value, list | tuple):
            yield from list(value)[:MOST_INSIDE]
        else:
            yield value


def is_watchable(value: object) -> bool:
    """Whether it is one of labkit's objects that hold connections; the class itself holds none."""
    return not isinstance(value, type) and hasattr(type(value), "_watched") and isinstance(value, Watchable)


def is_pikas(value: object) -> bool:
    """Whether it is one of Pika's connections, of any adapter. Nobody else's objects are asked for their attributes."""
    kinds = () if isinstance(value, type) else type(value).__mro__
    return any(kind.__module__.startswith("pika.") for kind in kinds) and wire_of(value) is not None


class Group:
    """Several watched objects as one, whose parts are counted once. Thread-safe for one thread that changes it.

    It keeps none of them alive.

    Args:
        are_replaced: What :class:`labkit.watched.Watched` says of it: pools go into a group of their own.
    """

    def __init__(self, *, are_replaced: bool) -> None:
        self._are_replaced = are_replaced
        self._members: dict[int, weakref.ref[Any]] = {}
        self._listeners: tuple[Listener, ...] = ()

    @property
    def members(self) -> list[Any]:
        """Those that are still there."""
        return [member for each in list(self._members.values()) if (member := each()) is not None]

    def hold(self, wanted: Iterable[Any]) -> None:
        """Watch these, and no others."""
        members = {id(each): each for each in self.members}
        now = {id(each): each for each in wanted}
        for key, each in now.items():
            if key not in members:
                for listener in self._listeners:
                    each._listen(listener)
        for key, each in members.items():
            if key not in now:
                for listener in self._listeners:
                    each._unlisten(listener)
        self._members = {key: weakref.ref(each) for key, each in now.items()}

    def _watched(self) -> Watched:
        parts = [each._watched() for each in self.members]
        return Watched(
            connections=_once(each for part in parts for each in part.connections),
            publishers=_once(each for part in parts for each in part.publishers),
            consumers=_once(each for part in parts for each in part.consumers),
            pools=_once(each for part in parts for each in part.pools),
            are_replaced=self._are_replaced,
        )

    def _listen(self, listener: Listener) -> None:
        self._listeners = (*self._listeners, listener)
        for each in self.members:
            each._listen(listener)

    def _unlisten(self, listener: Listener) -> None:
        self._listeners = tuple(each for each in self._listeners if each != listener)
        for each in self.members:
            each._unlisten(listener)


def _once(things: Iterable[Any]) -> tuple[Any, ...]:
    return tuple({id(each): each for each in things}.values())
