"""Declare again, on a new link, what a connection had declared on the old ones. On the I/O thread.

Each step is on its own: what the broker refuses is told to the listeners, and the rest goes on. A queue that is locked
(405: the broker has not noticed yet that the old link is dead) is tried again. An auto-delete exchange that goes with
the old link's queues, after it was declared here, is declared once more.
"""

import logging
import time
from collections import deque
from typing import Any

import pika.exceptions as px

from labkit.errors import describe
from labkit.events import DeclarationRefused, QueueRenamed
from labkit.frozen import FrozenMapping
from labkit.io_thread import IoThread
from labkit.link import Link
from labkit.role_channel import Done
from labkit.topology import Binding, Exchange, Queue
from labkit.topology_record import Entity, TopologyRecord

LOGGER = logging.getLogger(__name__)
NOT_FOUND, RESOURCE_LOCKED = 404, 405  # AMQP 0-9-1, section 1.2 (Constants)
LOCKED_PAUSE = 0.2  # seconds between two tries of what is locked
PATIENCE = 2.0  # seconds that recovery waits for what is locked; then it is tried on beside the work
LOCKED_HEARTBEATS = 3  # heartbeats after which the broker must have noticed
LOCKED_MAX = 30.0  # seconds of the same, without heartbeats

Step = tuple[Entity, str]


class TopologyRole:
    """Replays a record on each new link. A :class:`labkit.lifecycle.Role`, the first of its connection."""

    def __init__(self, io: IoThread, record: TopologyRecord) -> None:
        self._io = io
        self._record = record

    def restore(self, link: Link, done: Done) -> None:
        """Declare it all, and call *done*: a refusal is told, and is no reason to give up the link."""
        _Run(self._io, self._record, link, done).next()

    def lost(self, reason: BaseException) -> None:
        """The link is gone, and what is left of a replay with it."""

    def ended(self, reason: BaseException | None) -> None:
        """Nothing is kept open."""


class _Run:
    """One replay on one link, a step at a time, on channels that a refusal may cost."""

    def __init__(self, io: IoThread, record: TopologyRecord, link: Link, done: Done) -> None:
        self._io = io
        self._record = record
        self._link = link
        self._done: Done | None = done
        steps = record.steps()
        self._steps = deque(each for each in steps if not isinstance(each[0], Binding))
        self._are_bindings_due = len(steps) > len(self._steps)
        self._locked: list[Step] = []
        self._there: set[str] = set()  # exchanges that were declared on this link
        self._step: Step | None = None
        self._channel: Any = None
        heartbeat = 0.0 if link.connection is None else float(link.connection.params.heartbeat or 0)
        now = time.monotonic()
        self._patient_until = now + PATIENCE
        self._locked_until = now + (LOCKED_HEARTBEATS * heartbeat or LOCKED_MAX)

    def next(self) -> None:
        """Take the next step; at the end try what is locked again, or be done."""
        self._step = None
        if not self._link.is_open:
            return
        self._link.stepped_at = time.monotonic()
        if not self._steps and self._are_bindings_due:
            # Only now: the queues that the broker names have their new names.
            self._are_bindings_due = False
            self._steps.extend(each for each in self._record.steps() if isinstance(each[0], Binding))
        while self._steps and not self._record.holds(*self._steps[0]):
            self._steps.popleft()  # deleted meanwhile
        if not self._steps:
            self._wait_or_finish()
        elif self._channel is None:
            self._open()
        else:
            self._step = self._steps.popleft()
            try:
                self._declare(*self._step)
            except px.AMQPError as exc:  # the link is just ending, and says so itself
                LOGGER.debug("restoring the topology: %r", exc)

    def _open(self) -> None:
        connection = self._link.connection
        try:
            if connection is not None:
                self._channel = connection.channel(on_open_callback=lambda _: self.next())
                self._channel.add_on_close_callback(self._closed)
        except px.AMQPError as exc:  # no free channel number
            LOGGER.warning("the topology is not restored: %s", describe(exc))
            self._tell_done()

    def _declare(self, entity: Entity, name: str) -> None:
        channel = self._channel
        arguments = FrozenMapping(entity.arguments).thaw() or None  # Pika wants plain dicts and lists
        if isinstance(entity, Exchange):
            channel.exchange_declare(
                name, entity.type, False, entity.durable, entity.auto_delete, entity.internal, arguments, self._declared
            )
        elif isinstance(entity, Queue):
            channel.queue_declare(
                entity.name, False, entity.durable, entity.exclusive, entity.auto_delete, arguments, self._declared
            )
        else:
            bind = channel.queue_bind if entity.kind == "queue" else channel.exchange_bind
            bind(entity.destination, entity.source, entity.routing_key, arguments, self._declared)

    def _declared(self, frame: Any) -> None:
        if self._step is not None and isinstance(self._step[0], Queue):
            old, new = self._step[1], str(frame.method.queue)
            if self._record.renamed(old, new):
                self._link.emit(QueueRenamed(old=old, new=new))
        elif self._step is not None and isinstance(self._step[0], Exchange):
            self._there.add(self._step[1])
        self.next()

    def _closed(self, channel: Any, reason: BaseException) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        step, self._step = self._step, None
        if step is None or not isinstance(reason, px.ChannelClosed) or not self._link.is_open:
            return  # with the link, which says so itself: Pika tells its channels first
        code = getattr(reason, "reply_code", None)
        vanished = self._vanished(reason) if code == NOT_FOUND else None
        if vanished is not None:
            self._there.discard(vanished)
            self._steps.extendleft(reversed(self._record.around(vanished)))  # this step is one of them
        elif code == RESOURCE_LOCKED or (code == NOT_FOUND and self._locked):  # or what hangs on something locked
            self._locked.append(step)
        else:
            self._tell_refused(step, reason)
        self.next()

    def _vanished(self, reason: px.ChannelClosed) -> str | None:
        """Return the exchange that is missing though it was declared here: the end of the old link took it along."""
        return next((each for each in self._there if f"no exchange '{each}'" in reason.reply_text), None)

    def _wait_or_finish(self) -> None:
        now = time.monotonic()
        if self._locked and now < self._locked_until:
            if now >= self._patient_until:
                self._tell_done()  # the others have waited long enough; this goes on beside them

            def again() -> None:
                self._steps.extend(self._locked)
                self._locked.clear()
                self.next()

            self._io.call_later(LOCKED_PAUSE, again)
            return
        for step in self._locked:
            self._tell_refused(step, px.ChannelClosedByBroker(RESOURCE_LOCKED, "RESOURCE_LOCKED until the end"))
        channel, self._channel = self._channel, None
        if channel is not None and channel.is_open:
            channel.close()
        self._tell_done()

    def _tell_refused(self, step: Step, reason: BaseException) -> None:
        entity, name = step
        what = f"{type(entity).__name__.lower()} {name!r}" if name else f"binding of {entity_name(entity)!r}"
        LOGGER.warning("not declared again: %s: %s", what, describe(reason))
        self._link.emit(DeclarationRefused(what=what, reason=reason))

    def _tell_done(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(0)


def entity_name(entity: Entity) -> str:
    """Return what a binding leads to; of the others, the name."""
    return str(entity.destination) if isinstance(entity, Binding) else entity.name
