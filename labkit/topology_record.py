"""What a connection has declared, so that a new link can declare it again. No I/O; the replay is ``labkit.replay``."""

import dataclasses
from collections import Counter
from typing import TypeVar

from labkit.guard import guard
from labkit.topology import Binding, Exchange, Queue

Entity = Exchange | Queue | Binding
E = TypeVar("E", bound=Entity)


class TopologyRecord:
    """Exchanges, queues and bindings by their full identity, in the order in which they were declared. Thread-safe.

    What this connection deletes leaves the record, with its bindings; so does an auto-delete entity whose last user
    here goes, because the broker deletes that. What somebody else deletes stays, and comes back with the next link.

    A queue that the broker named is meant by any name that it has had here.
    """

    def __init__(self) -> None:
        self._lock = guard()
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, Queue] = {}  # by present name; a queue that the broker named has the name "" itself
        self._bindings: dict[Binding, None] = {}  # a Binding is equal to another only if its arguments are, too
        self._consumers: Counter[str] = Counter()
        self._names: dict[str, str] = {}  # what a queue was called, and what it is called after that

    def __len__(self) -> int:
        return len(self._exchanges) + len(self._queues) + len(self._bindings)

    def __repr__(self) -> str:
        counts = f"{len(self._exchanges)} exchanges, {len(self._queues)} queues, {len(self._bindings)} bindings"
        return f"TopologyRecord({counts})"

    def declared(self, entity: Entity, name: str = "") -> None:
        """Note that *entity* is there; *name* is the queue's, as the broker says."""
        with self._lock:
            if isinstance(entity, Exchange):
                self._exchanges[entity.name] = entity
            elif isinstance(entity, Queue):
                self._queues[name or entity.name] = entity
            else:
                self._bindings[self.present(entity)] = None

    def deleted(self, entity: Entity) -> None:
        """Note that this side has deleted it, and what the broker deletes with it."""
        with self._lock:
            entity = self.present(entity)
            if isinstance(entity, Exchange):
                self._drop_exchange(entity.name)
            elif isinstance(entity, Queue):
                self._drop_queue(entity.name)
            elif entity in self._bindings:
                self._drop_bindings([entity])

    def consumed(self, queue: str) -> None:
        """Note that a consumer of *queue* was started; to be followed by :meth:`cancelled` or :meth:`lost`, once."""
        with self._lock:
            self._consumers[self.current(queue)] += 1

    def cancelled(self, queue: str) -> None:
        """Note that this side has ended one; with the last one the broker deletes an auto-delete queue."""
        with self._lock:
            queue = self.current(queue)
            is_last = self._one_less(queue)
            if is_last and queue in self._queues and self._queues[queue].auto_delete:
                self._drop_queue(queue)

    def lost(self, queue: str) -> None:
        """Note that one has ended with its link, or that the broker has ended it: its queue is still wanted."""
        with self._lock:
            self._one_less(self.current(queue))

    def renamed(self, old: str, new: str) -> bool:
        """Note that the broker has given a queue a new name: its bindings are for that now. False: it is no new one."""
        with self._lock:
            if old == new or old not in self._queues:
                return False
            self._queues = {new if name == old else name: queue for name, queue in self._queues.items()}
            self._bindings = {
                dataclasses.replace(each, destination=new) if _leads_to(each, "queue", old) else each: None
                for each in self._bindings
            }
            if count := self._consumers.pop(old, 0):
                self._consumers[new] += count
            self._names = {was: new if now == old else now for was, now in self._names.items()}
            self._names[old] = new
            return True

    def current(self, queue: str) -> str:
        """Return what the queue that was once called so is called now."""
        return self._names.get(queue, queue)

    def present(self, entity: E) -> E:
        """Return *entity* with the name that its queue has now."""
        if isinstance(entity, Queue) and self.current(entity.name) != entity.name:
            return dataclasses.replace(entity, name=self.current(entity.name))
        if isinstance(entity, Binding) and entity.kind == "queue":
            destination = self.current(str(entity.destination))
            if destination != entity.destination:
                return dataclasses.replace(entity, destination=destination)
        return entity

    def has_queue(self, name: str) -> bool:
        """Whether a queue of that present name is to be declared on the next link."""
        with self._lock:
            return name in self._queues

    def steps(self) -> list[tuple[Entity, str]]:
        """Return all there is to declare, in order: exchanges, queues with their present names, bindings."""
        with self._lock:
            return [
                *((each, each.name) for each in self._exchanges.values()),
                *((each, name) for name, each in self._queues.items()),
                *((each, "") for each in self._bindings),
            ]

    def around(self, exchange: str) -> list[tuple[Entity, str]]:
        """Return what there is to declare of one exchange, in order: itself, then its bindings."""
        return [
            (each, name)
            for each, name in self.steps()
            if (isinstance(each, Exchange) and name == exchange)
            or (isinstance(each, Binding) and (each.source == exchange or _leads_to(each, "exchange", exchange)))
        ]

    def holds(self, entity: Entity, name: str) -> bool:
        """Whether it is still to be declared: it may have been deleted since :meth:`steps`."""
        with self._lock:
            if isinstance(entity, Exchange):
                return self._exchanges.get(name) is entity
            if isinstance(entity, Queue):
                return self._queues.get(name) is entity
            return entity in self._bindings

    def _one_less(self, queue: str) -> bool:
        """Count one consumer less; return whether there is none now. A count of 0 is not kept: names may be many."""
        self._consumers[queue] -= 1
        if self._consumers[queue] > 0:
            return False
        del self._consumers[queue]
        return True

    def _drop_queue(self, name: str) -> None:
        self._queues.pop(name, None)
        self._drop_bindings([each for each in self._bindings if _leads_to(each, "queue", name)])

    def _drop_exchange(self, name: str) -> None:
        self._exchanges.pop(name, None)
        for each in list(self._bindings):
            if each.source == name:
                self._bindings.pop(each, None)
        self._drop_bindings([each for each in self._bindings if _leads_to(each, "exchange", name)])

    def _drop_bindings(self, bindings: list[Binding]) -> None:
        """Forget *bindings*, and each auto-delete exchange that has none left to others."""
        for each in bindings:
            self._bindings.pop(each, None)
        for source in {str(each.source) for each in bindings}:
            exchange = self._exchanges.get(source)
            if exchange is not None and exchange.auto_delete and all(each.source != source for each in self._bindings):
                self._drop_exchange(source)


def _leads_to(binding: Binding, kind: str, name: str) -> bool:
    return binding.kind == kind and binding.destination == name
