"""Declare again, on a new link, what a connection had declared on the old ones; and keep it whole. On the I/O thread.

Each step is on its own: what the broker refuses is told to the listeners, and the rest goes on. A queue that is locked
(405: the broker has not noticed yet that the old link is dead) is tried again. What the old link's end takes along
after it was declared here, an auto-delete queue or exchange, is declared once more: at once where a step meets that, or
in one of the looks that follow a recovery. What gives no answer, a queue whose process hangs, is left behind on its
channel, and noted when the answer comes.
"""

import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import SOMEBODY, Blame, declaring
from labkit.connection.io_thread import IoThread
from labkit.connection.link import Link
from labkit.connection.loop import Timer
from labkit.connection.role import Done
from labkit.connection.topology_record import Entity, Place, Step, TopologyRecord, place_of
from labkit.errors import describe
from labkit.events import DeclarationRefused, QueueRenamed
from labkit.retry import Backoff
from labkit.topology import Binding, Exchange, Queue
from labkit.values import FrozenMapping

LOGGER = logging.getLogger(__name__)
NOT_FOUND, RESOURCE_LOCKED = 404, 405  # AMQP 0-9-1, section 1.2 (Constants)
LOCKED_PAUSES = Backoff(initial=0.02, maximum=0.2, jitter="none")  # between two tries of what is locked
PATIENCE = 2.0  # seconds that recovery waits for what is locked, or gives no answer; then it goes on beside the work
PATIENCE_AGAIN = 0.2  # seconds for each further step without an answer
LATE_MAX = 100  # steps of one run that may be left behind, each with its channel
NOTICED_HEARTBEATS = 3  # heartbeats after which the broker must have noticed that a link is dead
NOTICED_MAX = 30.0  # seconds of the same, without heartbeats
LOOK_FIRST, LOOK_FACTOR = 0.1, 3.0  # seconds from a recovery to the first look, and how much later each next one is
STEP_PAUSE = 0.005  # seconds between two looks whether a step has been answered
REDONE_MAX = 3  # times that one run declares the same again because it has gone

Plan = Callable[[], list[Step]]  # steps that are known only when their turn comes


class TopologyRole:
    """Replays a record on each new link, and what of it has gone since. A :class:`Role`, the first.

    Args:
        io: The I/O thread.
        record: What there is to declare; connections may share it.
        blame: What of it has ended links, and is not tried any more.
        home: Which of them this is.
    """

    def __init__(self, io: IoThread, record: TopologyRecord, blame: Blame, home: object) -> None:
        self.io = io
        self.record = record
        self.blame = blame
        self.home = home
        self._refused: dict[Step, BaseException] = {}  # on this link
        self._mending: dict[Place, list[Callable[[], object]]] = {}  # on this link, and who waits for it
        self._look: Timer | None = None
        self.runs: set[_ReplayRun] = set()  # on this link
        self._link: Link | None = None
        self._ends: list[PendingCall] = []  # see must_wait()
        record.replays.append(self)

    def restore(self, link: Link, done: Done) -> None:
        """Declare it all, and call *done*: a refusal is told, and is no reason to give up the link."""
        self._forget_link()
        self._link = link
        if not len(self.record):
            done(0)
            return

        def restored() -> None:
            self._look_later(link, time.monotonic(), deque(look_times(noticed_within(link))))
            done(0)

        _ReplayRun(self, link, partial(self.record.steps, self.home), restored, is_new_link=True).next()

    def lost(self, reason: BaseException) -> None:  # noqa: ARG002 - whatever it was
        """The link is gone, and what is left of a replay with it."""
        self._forget_link()

    def ended(self, reason: BaseException | None) -> None:  # noqa: ARG002 - whatever it was
        """Nothing is kept open."""
        self._forget_link()

    def mend(self, link: Link, place: Place, done: Callable[[], object]) -> None:
        """Have a queue or an exchange that may have gone there again, whole, and then call *done*.

        What is not in the record itself is not declared, but its bindings are: those to queues of another connection
        that shares the record by that one, a little later. If the link ends first, *done* is not called.
        """
        self._mend(link, place, done)
        for other in self.record.replays:
            if other is not self and other._link is not None:
                other._mend(other._link, place, lambda: None)

    def _mend(self, link: Link, place: Place, done: Callable[[], object]) -> None:
        if place in self._mending:
            self._mending[place].append(done)
            return

        def mended() -> None:
            for each in self._mending.pop(place, ()):
                each()

        self._mending[place] = [done]
        _ReplayRun(self, link, partial(self.around, place), mended).next()

    def refusal(self, queue: str) -> BaseException | None:
        """Return why a queue, by its present name, was refused on this link; None: it was not."""
        entity = self.record.queue(queue)
        return None if entity is None else self._refused.get((entity, queue))

    def around(self, *places: Place) -> list[Step]:
        """Return what this connection has to declare of *places*, with what goes when they go."""
        kind_and_name = ((kind, self.record.current(name) if kind == "queue" else name) for kind, name in places)
        return self.record.around(*kind_and_name, home=self.home)

    def must_wait(self, waiter: PendingCall) -> bool:
        """Whether what deletes something, and is answered by *waiter*, must wait because a step is on its way.

        The broker might take the step up after the delete, and bring back what was deleted. No step begins any more,
        on any connection that shares the record, until *waiter* is answered, or nobody waits.
        """
        self._ends = [*(each for each in self._ends if _is_awaited(each) and each is not waiter), waiter]
        return any(each.is_on_its_way for role in self.record.replays for each in role.runs)

    @property
    def is_held_up(self) -> bool:
        """Whether no step may begin now."""
        return any(_is_awaited(each) for role in self.record.replays for each in role._ends)

    def declared(self, step: Step) -> None:
        """Take note that it is there."""
        self._refused.pop(step, None)
        self.blame.clear(declaring(*step))

    def refused(self, link: Link, step: Step, reason: BaseException, *, is_news: bool = True) -> None:
        """Take note that the broker does not want it; tell that, once a link."""
        is_news = is_news and step not in self._refused
        self._refused[step] = reason
        if is_news:
            entity, name = step
            what = _described(entity, name)
            LOGGER.warning("not declared again: %s: %s", what, describe(reason))
            link.emit(DeclarationRefused(what=what, reason=reason))

    def _look_later(self, link: Link, since: float, times: "deque[float]") -> None:
        """Look, so many seconds after *since*, whether the old link's end has taken along what is there on this one."""
        self._look = None
        if not times:
            return

        def look() -> None:
            again = partial(self._look_later, link, since, times)
            _ReplayRun(self, link, lambda: self.around(*self.record.passing()), again).next()

        self._look = self.io.call_later(max(0.0, since + times.popleft() - time.monotonic()), look)

    def _forget_link(self) -> None:
        self._link = None
        self._refused.clear()
        self._mending.clear()
        self.runs.clear()
        self._ends.clear()  # what was to end on the old link has ended, answered or not
        look, self._look = self._look, None
        if look is not None:
            look.cancel()


class _ReplayRun:
    """One replay on one link, a step at a time, on channels that a refusal may cost.

    Args:
        role: Whose it is.
        link: Where.
        plan: What to declare; asked again for the bindings, when the broker has named its queues.
        done: Called at the end, if the link is open still.
        is_new_link: Locked queues become free; server-named ones that end with their link have ended.
    """

    def __init__(
        self, role: TopologyRole, link: Link, plan: Plan, done: Callable[[], object], *, is_new_link: bool = False
    ) -> None:
        self._role = role
        self._record = role.record
        self._link = link
        self._done: Callable[[], object] | None = done
        self._is_new_link = is_new_link
        self._steps: deque[Step | Plan] = deque()
        self._locked: set[Place] = set()  # queues that wait for the end of the old link, and their bindings with them
        self._gone: set[str] = set()  # queues that were looked for, and are to be made again
        self._pauses = 0
        self._redone: Counter[Place] = Counter()
        self._step: Step | None = None
        self._channel: Any = None
        self._late: dict[Any, Step] = {}  # by channel: what was left behind
        self._limit: Timer | None = None  # for the answer to the present step
        now = time.monotonic()
        self._patient_until = now + PATIENCE
        self._locked_until = now + noticed_within(link)
        self._begin_with(plan)
        role.runs.add(self)

    @property
    def is_on_its_way(self) -> bool:
        """Whether a step has been sent, and not answered."""
        return self._step is not None

    def next(self) -> None:
        """Take the next step; at the end try what is locked again, or be done."""
        if not self._link.is_open:
            return
        if self._role.is_held_up:
            self._role.io.call_later(STEP_PAUSE, self.next)
            return
        self._link.note_step()
        self._step = self._take()
        if self._step is None:
            self._wait_or_finish()
        elif self._channel is None:
            self._steps.appendleft(self._step)
            self._step = None
            self._open()
        else:
            try:
                self._declare(*self._step)
                self._wait_for_the_answer()
            except px.AMQPError as exc:  # the link is just ending, and says so itself
                LOGGER.debug("restoring the topology: %r", exc)

    def _wait_for_the_answer(self) -> None:
        connection = self._link.connection
        if connection is not None and len(self._late) < LATE_MAX:
            half = (connection.params.stack_timeout or math.inf) / 2  # at all of it the link is given up
            patience = PATIENCE_AGAIN if self._late else min(PATIENCE, half)
            self._limit = self._role.io.call_later(patience, self._leave_behind)

    def _leave_behind(self) -> None:
        """Go on without the present step, on another channel: that one opens only if the link itself is well."""
        self._limit = None
        step, self._step = self._step, None
        channel, self._channel = self._channel, None
        if step is not None and channel is not None and channel.is_open:
            LOGGER.warning("%s gives no answer; the topology is restored without", _described(*step))
            self._late[channel] = step
            self._open()

    def _answered(self) -> Step | None:
        """Return the step that has been answered."""
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.cancel()
        step, self._step = self._step, None
        return step

    def _begin_with(self, plan: Plan) -> None:
        steps = plan()
        entities = [each for each in steps if not isinstance(each[0], Binding)]
        if len(entities) < len(steps):
            self._steps.appendleft(lambda: [each for each in plan() if isinstance(each[0], Binding)])
        self._steps.extendleft(reversed(entities))

    def _take(self) -> Step | None:
        """Return the next step that is to be done still; None: there is none."""
        while self._steps:
            each = self._steps.popleft()
            if not isinstance(each, tuple):
                steps = each()
                known = set(steps)
                later = [each for each in self._steps if not isinstance(each, tuple) or each not in known]
                self._steps = deque([*steps, *later])
            elif not self._record.holds(*each):
                pass  # deleted meanwhile
            elif (reason := self._role.blame.aside.get(declaring(*each))) is not None:
                self._role.refused(self._link, each, reason)
            elif place_of(*each) not in self._locked:
                return each
        return None

    def _open(self) -> None:
        connection = self._link.connection
        try:
            if connection is not None:
                self._channel = connection.channel(on_open_callback=lambda _: self.next())
                self._channel.add_on_close_callback(self._closed)
        except px.AMQPError as exc:  # no free channel number
            LOGGER.warning("the topology is not restored: %s", describe(exc))
            self._role.runs.discard(self)
            self._tell_done()

    def _declare(self, entity: Entity, name: str) -> None:
        channel = self._channel
        declared = partial(self._declared, channel)
        arguments = FrozenMapping(entity.arguments).thaw() or None  # Pika wants plain dicts and lists
        if isinstance(entity, Exchange):
            channel.exchange_declare(
                name, entity.type, False, entity.durable, entity.auto_delete, entity.internal, arguments, declared
            )
        elif isinstance(entity, Queue):
            is_look = self._may_be_there(entity, name)  # else the broker would make another one
            channel.queue_declare(
                name if is_look else entity.name,
                is_look,
                entity.durable,
                entity.exclusive,
                entity.auto_delete,
                arguments,
                declared,
            )
        else:
            bind = channel.queue_bind if entity.kind == "queue" else channel.exchange_bind
            bind(entity.destination, entity.source, entity.routing_key, arguments, declared)

    def _may_be_there(self, queue: Queue, name: str) -> bool:
        """Whether a queue is looked for before another one is made: one that the broker has named, and a stream.

        Who reads a stream must know that it is a new one, where an old number means nothing.
        """
        if name in self._gone:
            return False
        if queue.name:
            return queue.arguments.get("x-queue-type") == "stream"
        if self._is_new_link and _ends_with_its_link(queue):
            # RabbitMQ 4.3 keeps a broken exchange if one is bound to in the moment in which it auto-deletes: with the
            # last queue of the old link. So that is to have gone.
            return self._record.is_bound_to_passing(name)
        return True

    def _declared(self, channel: Any, frame: Any) -> None:
        if (late := self._late.pop(channel, None)) is not None:
            self._note(late, frame)
            channel.close()
            _ReplayRun(self._role, self._link, partial(self._bindings_of, late), lambda: None).next()
            return
        step = self._answered()
        if step is not None and self._is_the_old_links(step, frame):
            self._locked.add(place_of(*step))
        elif step is not None:
            self._note(step, frame)
        self.next()

    def _is_the_old_links(self, step: Step, frame: Any) -> bool:
        entity, name = step
        return (
            self._is_new_link
            and isinstance(entity, Queue)
            and _ends_with_its_link(entity)
            and name == frame.method.queue
            and self._may_be_there(entity, name)
        )

    def _note(self, step: Step, frame: Any) -> None:
        old = step[1]
        if isinstance(step[0], Queue) and self._record.renamed(old, new := str(frame.method.queue)):
            self._link.emit(QueueRenamed(old=old, new=new))
        self._role.declared(step)

    def _bindings_of(self, step: Step) -> list[Step]:
        return [each for each in self._role.around(place_of(*step)) if isinstance(each[0], Binding)]

    def _closed(self, channel: Any, reason: BaseException) -> None:
        if (late := self._late.pop(channel, None)) is not None:
            if isinstance(reason, px.ChannelClosed):
                self._role.refused(self._link, late, reason)
            else:  # it is on its way still, and may be what has ended the link
                self._link.in_hand.add(declaring(*late))
        if channel is not self._channel:
            return
        self._channel = None
        step = self._answered()
        if step is None or not isinstance(reason, px.ChannelClosed) or not self._link.is_open:
            self._link.in_hand.add(SOMEBODY if step is None else declaring(*step))
            return  # with the link, which says so itself: Pika tells its channels first
        entity, name = step
        code = reason.reply_code
        if code == NOT_FOUND and isinstance(entity, Queue) and self._may_be_there(entity, name):
            self._gone.add(name)
            self._record.missed(name)
            self._steps.appendleft(step)
        elif code == NOT_FOUND and isinstance(entity, Binding) and (gone := self._gone_with(entity, reason)):
            self._redone.update(gone)
            self._begin_with(partial(self._role.around, *gone))  # this step is one of them
        elif code == RESOURCE_LOCKED and self._is_new_link:
            self._locked.add(place_of(*step))
        else:
            self._role.refused(self._link, step, reason, is_news=code != RESOURCE_LOCKED)
        self.next()

    def _gone_with(self, binding: Binding, reason: px.ChannelClosed) -> list[Place]:
        """Return which of its two ends are missing though they are to be there: the old link's end took them along."""
        ends: set[Place] = {("exchange", str(binding.source)), place_of(binding)}
        return [
            each
            for each in ends
            if f"no {each[0]} '" in reason.reply_text
            and self._record.keeps(each, self._role.home)
            and self._redone[each] < REDONE_MAX
        ]

    def _wait_or_finish(self) -> None:
        now = time.monotonic()
        if self._locked and now < self._locked_until:
            if now >= self._patient_until:
                old = {name for entity, name in self._role.around(*self._locked) if _is_named_by_the_broker(entity)}
                if old <= self._gone:
                    self._tell_done()  # the others have waited long enough; this goes on beside them
                self._gone |= old

            def again() -> None:
                self._begin_with(partial(self._role.around, *self._locked))
                self._locked.clear()
                self.next()

            self._role.io.call_later(LOCKED_PAUSES.delay(self._pauses), again)
            self._pauses += 1
            return
        for step in self._role.around(*self._locked):
            locked = px.ChannelClosedByBroker(RESOURCE_LOCKED, "RESOURCE_LOCKED until the end")
            self._role.refused(self._link, step, locked)
        channel, self._channel = self._channel, None
        if channel is not None and channel.is_open:
            channel.close()
        self._role.runs.discard(self)
        self._tell_done()

    def _tell_done(self) -> None:
        done, self._done = self._done, None
        if done is not None and self._link.is_open:
            done()


def _is_awaited(waiter: PendingCall) -> bool:
    return not (waiter.is_settled or waiter.is_abandoned)


def _ends_with_its_link(queue: Queue) -> bool:
    return queue.exclusive or queue.auto_delete


def _is_named_by_the_broker(entity: Entity) -> bool:
    return isinstance(entity, Queue) and not entity.name


def look(link: Link, what: Queue | Exchange, done: Callable[[bool], object]) -> None:
    """Call *done* with whether *what* is missing; the first call counts. It is not called if the link ends first."""
    connection = link.connection
    if connection is None:
        return

    def there(_: Any) -> None:
        done(False)
        with contextlib.suppress(px.AMQPError):  # it is just ending
            channel.close()

    def opened(_: Any) -> None:
        declare = channel.queue_declare if isinstance(what, Queue) else channel.exchange_declare
        with contextlib.suppress(px.AMQPError):
            declare(what.name, passive=True, callback=there)

    channel = connection.channel(on_open_callback=opened)
    channel.add_on_close_callback(lambda _, reason: done(getattr(reason, "reply_code", None) == NOT_FOUND))


def look_times(limit: float) -> list[float]:
    """Return when to look, in seconds from a recovery: soon, then less and less often, and last at *limit*."""
    times, at = [], LOOK_FIRST
    while at < limit:
        times.append(at)
        at *= LOOK_FACTOR
    return [*times, limit]


def noticed_within(link: Link) -> float:
    """Return the seconds within which the broker must have noticed that the link before this one is dead."""
    heartbeat = 0.0 if link.connection is None else float(link.connection.params.heartbeat or 0)
    return NOTICED_HEARTBEATS * heartbeat or NOTICED_MAX


def _described(entity: Entity, name: str) -> str:
    return f"{type(entity).__name__.lower()} {name!r}" if name else f"binding of {entity_name(entity)!r}"


def entity_name(entity: Entity) -> str:
    """Return what a binding leads to; of the others, the name."""
    return str(entity.destination) if isinstance(entity, Binding) else entity.name
