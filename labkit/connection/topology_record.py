"""What a connection has declared, so that a new link can declare it again. No I/O; ``topology_replay`` replays it."""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from labkit.topology import Binding, Exchange, Queue
from labkit.values import refused

FORMER_MAX = 100  # names that a queue had after its first one, and before the present one, that are understood

Entity = Exchange | Queue | Binding
Step = tuple[Entity, str]  # what to declare, and its name now; "" for a binding
Place = tuple[Literal["queue", "exchange"], str]  # what a binding may lead to
Keeps = Callable[[Entity], bool]
Topology = Literal["all", "none"] | Keeps
E = TypeVar("E", bound=Entity)


def checked_topology(value: Any) -> Keeps:
    """Return what says of an entity whether it is to be kept.

    Raises:
        ConfigurationError: *value* is none of what a :class:`labkit.Connection` takes.
    """
    if callable(value):
        return lambda entity: bool(value(entity))
    if not isinstance(value, str) or value not in ("all", "none"):
        raise refused("topology", value, "'all', 'none', or a function of a Queue, an Exchange or a Binding")
    return lambda _: value == "all"


@dataclass(eq=False, slots=True)
class Kept:
    """A queue that is to be declared on each link.

    Attributes:
        queue: As it was declared; one that the broker names has the name "" itself.
        first: The name that it had first, which its user may hold forever.
        name: The present one.
        declarer: The connection that declared it last.
        former: The names in between, oldest first.
        keepers: Who declared it: consumers, until they end, and None: the user, who deletes it.
        times_missing: How often it was looked for, and had gone.
    """

    queue: Queue
    first: str
    name: str
    declarer: object
    former: deque[str] = field(default_factory=deque)
    keepers: set[object] = field(default_factory=set)
    times_missing: int = 0

    @property
    def home(self) -> object:
        """The only connection that declares it: no other can, or only consumers there need it; None: any."""
        is_own = self.queue.exclusive or not self.queue.name or None not in self.keepers
        return self.declarer if is_own else None

    def names(self) -> set[str]:
        """Return every name by which it is known here."""
        return {self.first, self.name, *self.former}


class TopologyRecord:
    """Exchanges, queues and bindings by their full identity, in the order in which they were declared.

    What this side deletes leaves the record, with its bindings; so does an auto-delete entity whose last user here
    goes, because the broker deletes that. What somebody else deletes stays, and comes back; so does a queue of a
    consumer that goes on, whoever deletes it.

    A queue that the broker named is meant by its first name, its present one, and the last ``FORMER_MAX`` in between.

    On the I/O thread only, which has no lock to wait for while a signal handler interrupts who has it; but
    :meth:`current`, :meth:`present` and :attr:`has_bindings` from any thread.

    Connections may share a record. *home* is then one of them, and it means what that one has to declare.
    """

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, Kept] = {}  # by first name
        self._by_name: dict[str, Kept] = {}  # by each name that is understood
        # By what they lead to. A Binding is equal to another only if its arguments are, too.
        self._bindings: dict[Place, dict[Binding, None]] = {}
        self._consumers: Counter[str] = Counter()
        self.replays: list[Any] = []  # a TopologyRole for each connection that shares this

    def __len__(self) -> int:
        return len(self._exchanges) + len(self._queues) + sum(map(len, self._bindings.values()))

    def __repr__(self) -> str:
        bindings = sum(map(len, self._bindings.values()))
        return f"TopologyRecord({len(self._exchanges)} exchanges, {len(self._queues)} queues, {bindings} bindings)"

    def declared(self, entity: Entity, name: str = "", *, home: object = None, keeper: object = None) -> None:
        """Note that *entity* is there; *name* is the queue's, as the broker says, *keeper* the consumer that did it."""
        if isinstance(entity, Exchange):
            self._exchanges[entity.name] = entity
        elif isinstance(entity, Queue):
            self._keep(entity, name or entity.name, home).keepers.add(keeper)
        else:
            entity = self.present(entity)
            self._bindings.setdefault(place_of(entity), {})[entity] = None

    def deleted(self, entity: Entity) -> None:
        """Note that this side has deleted it, and what the broker deletes with it.

        A queue that a consumer declares stays, with its bindings: that consumer declares it again.
        """
        entity = self.present(entity)
        if isinstance(entity, Exchange):
            self._drop_exchange(entity.name)
        elif isinstance(entity, Queue):
            if not self._is_kept_without(None, entity.name):
                self._drop_queue(entity.name)
        elif entity in self._bindings.get(place_of(entity), ()):
            self._drop_bindings([entity])

    def released(self, queue: str, keeper: object) -> None:
        """Note that *keeper* needs the queue no more: it leaves the record, unless somebody else has declared it."""
        if queue in self._by_name and not self._is_kept_without(keeper, queue):
            self._drop_queue(self.current(queue))

    def consumed(self, queue: str) -> None:
        """Note that a consumer of *queue* was started; to be followed by :meth:`cancelled` or :meth:`lost`, once."""
        self._consumers[self.current(queue)] += 1

    def cancelled(self, queue: str) -> None:
        """Note that this side has ended one; with the last one the broker deletes an auto-delete queue."""
        queue = self.current(queue)
        is_last = self._one_less(queue)
        kept = self._by_name.get(queue)
        if is_last and kept is not None and kept.queue.auto_delete:
            self._drop_queue(queue)

    def lost(self, queue: str) -> None:
        """Note that one has ended with its link, or that the broker has ended it: its queue is still wanted."""
        self._one_less(self.current(queue))

    def missed(self, queue: str) -> None:
        """Note that a queue, by its present name, was looked for and had gone."""
        if (kept := self._by_name.get(queue)) is not None:
            kept.times_missing += 1

    def times_missing(self, queue: str) -> int:
        """Return how often that has been since it was declared first."""
        kept = self._by_name.get(queue)
        return 0 if kept is None else kept.times_missing

    def renamed(self, old: str, new: str) -> bool:
        """Note that the broker has given a queue a new name: its bindings are for that now. False: it is no new one."""
        kept = self._by_name.get(old)
        if old == new or kept is None or kept.name != old:
            return False
        if old != kept.first:
            kept.former.append(old)
        if len(kept.former) > FORMER_MAX:
            del self._by_name[kept.former.popleft()]
        kept.name = new
        self._by_name[new] = kept
        for each in self._bindings.pop(("queue", old), ()):
            self._bindings.setdefault(("queue", new), {})[dataclasses.replace(each, destination=new)] = None
        if count := self._consumers.pop(old, 0):
            self._consumers[new] += count
        return True

    @property
    def has_bindings(self) -> bool:
        """Whether anything is bound."""
        return bool(self._bindings)

    def current(self, queue: str) -> str:
        """Return what the queue that was once called so is called now."""
        kept = self._by_name.get(queue)
        return queue if kept is None else kept.name

    def present(self, entity: E) -> E:
        """Return *entity* with the name that its queue has now."""
        if isinstance(entity, Queue) and self.current(entity.name) != entity.name:
            return dataclasses.replace(entity, name=self.current(entity.name))
        if isinstance(entity, Binding) and entity.kind == "queue":
            destination = self.current(str(entity.destination))
            if destination != entity.destination:
                return dataclasses.replace(entity, destination=destination)
        return entity

    def queue(self, name: str) -> Queue | None:
        """Return the queue of that present name, as it was declared; None: it is not to be declared."""
        kept = self._by_name.get(name)
        return kept.queue if kept is not None and kept.name == name else None

    def steps(self, home: object = None) -> list[Step]:
        """Return all there is to declare, in order: exchanges, queues with their present names, bindings."""
        return [
            *((each, each.name) for each in self._exchanges.values()),
            *((each.queue, each.name) for each in self._queues.values() if each.home in (None, home)),
            *((each, "") for each in self._all_bindings() if self._is_at(home, each)),
        ]

    def around(self, *places: Place, home: object = None) -> list[Step]:
        """Return what there is to declare of *places*: themselves, their bindings, and what goes when those go.

        That is each auto-delete exchange with a binding to one of them, and what is around it.
        """
        wanted = self._with_what_goes_along(places)
        return [
            (each, name)
            for each, name in self.steps(home)
            if place_of(each, name) in wanted or (isinstance(each, Binding) and _start_of(each) in wanted)
        ]

    def passing(self) -> list[Place]:
        """Return what the end of another link may delete after it was declared: auto-delete exchanges and queues.

        Not those that end with their own link, or that each link has under another name.
        """
        kept = self._queues.values()
        queues = [each for each in kept if each.queue.auto_delete and each.queue.name and not each.queue.exclusive]
        return [
            *(("queue", each.name) for each in queues),
            *(("exchange", each) for each in self._exchanges if self._passes(each)),
        ]

    def is_bound(self, place: Place) -> bool:
        """Whether there is a binding to a queue, or to or from an exchange."""
        is_source = place[0] == "exchange" and any(_start_of(each) == place for each in self._all_bindings())
        return is_source or place in self._bindings

    def is_bound_to_passing(self, queue: str) -> bool:
        """Whether there is a binding to the queue of that present name from an auto-delete exchange."""
        return any(self._passes(str(each.source)) for each in self._bindings.get(("queue", queue), ()))

    def keeps(self, place: Place, home: object = None) -> bool:
        """Whether the queue of that present name, or the exchange, is to be declared by *home*."""
        kind, name = place
        if kind == "exchange":
            return name in self._exchanges
        kept = self._by_name.get(name)
        return kept is not None and kept.name == name and kept.home in (None, home)

    def holds(self, entity: Entity, name: str) -> bool:
        """Whether it is still to be declared: it may have been deleted since :meth:`steps`."""
        if isinstance(entity, Queue):
            return self.queue(name) == entity
        if isinstance(entity, Exchange):
            return self._exchanges.get(name) == entity
        return entity in self._bindings.get(place_of(entity), ())

    def _keep(self, queue: Queue, name: str, home: object) -> Kept:
        kept = self._by_name.get(name)
        if kept is None:
            kept = self._queues[name] = self._by_name[name] = Kept(queue, name, name, home)
        kept.queue, kept.declarer = queue, home
        return kept

    def _is_kept_without(self, keeper: object, queue: str) -> bool:
        """Forget that *keeper* wants the queue; return whether another does."""
        kept = self._by_name.get(queue)
        if kept is not None:
            kept.keepers.discard(keeper)
        return kept is not None and bool(kept.keepers)

    def _one_less(self, queue: str) -> bool:
        """Count one consumer less; return whether there is none now. A count of 0 is not kept: names may be many."""
        self._consumers[queue] -= 1
        if self._consumers[queue] > 0:
            return False
        del self._consumers[queue]
        return True

    def _all_bindings(self) -> Iterator[Binding]:
        for each in self._bindings.values():
            yield from each

    def _is_at(self, home: object, binding: Binding) -> bool:
        kept = self._by_name.get(str(binding.destination)) if binding.kind == "queue" else None
        return kept is None or kept.home in (None, home)

    def _with_what_goes_along(self, places: tuple[Place, ...]) -> set[Place]:
        wanted, to_look_at = set(places), list(places)
        while to_look_at:
            for each in self._bindings.get(to_look_at.pop(), ()):
                source = _start_of(each)
                if source not in wanted and self._passes(source[1]):
                    wanted.add(source)
                    to_look_at.append(source)
        return wanted

    def _passes(self, exchange: str) -> bool:
        return exchange in self._exchanges and self._exchanges[exchange].auto_delete

    def _drop_queue(self, name: str) -> None:
        kept = self._by_name.get(name)
        if kept is not None:
            del self._queues[kept.first]
            for each in kept.names():
                del self._by_name[each]
        self._drop_bindings(list(self._bindings.get(("queue", name), ())))

    def _drop_exchange(self, name: str) -> None:
        self._exchanges.pop(name, None)
        for each in [each for each in self._all_bindings() if each.source == name]:
            self._remove(each)
        self._drop_bindings(list(self._bindings.get(("exchange", name), ())))

    def _drop_bindings(self, bindings: list[Binding]) -> None:
        """Forget *bindings*, and each auto-delete exchange that has none left to others."""
        for each in bindings:
            self._remove(each)
        for source in {str(each.source) for each in bindings}:
            if self._passes(source) and all(each.source != source for each in self._all_bindings()):
                self._drop_exchange(source)

    def _remove(self, binding: Binding) -> None:
        place = place_of(binding)
        bindings = self._bindings.get(place, {})
        bindings.pop(binding, None)
        if not bindings:
            self._bindings.pop(place, None)


def place_of(entity: Entity, name: str = "") -> Place:
    """Return where a queue of that present name or an exchange is; of a binding, what it leads to."""
    if isinstance(entity, Binding):
        return entity.kind, str(entity.destination)
    return ("queue", name) if isinstance(entity, Queue) else ("exchange", entity.name)


def _start_of(binding: Binding) -> Place:
    return "exchange", str(binding.source)
