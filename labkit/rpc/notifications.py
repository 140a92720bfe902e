"""Events for whoever listens, now or later: notifiers publish them by priority, listeners have methods called."""

import datetime
import enum
import logging
import uuid
from collections.abc import Iterable
from functools import partialmethod
from typing import Any, Self

from labkit.errors import ConfigurationError
from labkit.rpc.driver import Listener, checked_retry
from labkit.rpc.incoming import IncomingNotification
from labkit.rpc.serializer import Serializer, checked_serializer
from labkit.rpc.server import WORKERS, MessageServer
from labkit.rpc.target import Target
from labkit.rpc.transport import Transport
from labkit.values import check_type, checked_callable, checked_flag, checked_items, checked_key, checked_name, refused

LOGGER = logging.getLogger(__name__)
PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")
VERSIONS = {"messagingv2": 2.0, "messaging": 1.0}  # oslo.messaging's names: in an envelope, or not


class NotificationResult(enum.Enum):
    """What a method of an endpoint may return; None means HANDLED."""

    HANDLED = "handled"
    REQUEUE = "requeue"


class Notifier:
    """Publishes events. They wait in the queue ``<topic>.<priority>`` for a listener, also for one yet to come.

    Thread-safe.

    Args:
        transport: The way to the broker.
        publisher_id: Who says it, such as "compute.host-1".
        topics: Each event goes to all of them.
        driver: "messagingv2", or "messaging" for peers that know no envelope.
        exchange: The control exchange; None: the transport's.
        serializer: Turns payloads into what JSON can carry.
        retry: As for :class:`labkit.rpc.RPCClient`.

    Raises:
        ConfigurationError: an invalid argument. The constructor does no I/O.
    """

    def __init__(
        self,
        transport: Transport,
        publisher_id: str,
        *,
        topics: Iterable[str] = ("notifications",),
        driver: str = "messagingv2",
        exchange: str | None = None,
        serializer: Serializer | None = None,
        retry: int | None = None,
    ) -> None:
        check_type("transport", transport, Transport)
        if driver not in VERSIONS:
            raise refused("driver", driver, " or ".join(map(repr, VERSIONS)))
        self.transport = transport
        self.publisher_id = checked_key("publisher_id", publisher_id)
        self._topics = _names("topics", topics)
        self._driver, self._retry = driver, checked_retry(retry)
        self._exchange = None if exchange is None else checked_name("exchange", exchange)
        self._serializer = checked_serializer(serializer)

    def __repr__(self) -> str:
        return f"Notifier({self.publisher_id!r})"

    def prepare(self, *, publisher_id: str | None = None, retry: int | None = None) -> Self:
        """Return a notifier with another publisher, or another number of retries."""
        return type(self)(
            self.transport,
            self.publisher_id if publisher_id is None else publisher_id,
            topics=self._topics,
            driver=self._driver,
            exchange=self._exchange,
            serializer=self._serializer,
            retry=self._retry if retry is None else retry,
        )

    def notify(self, priority: str, ctxt: Any, event_type: str, payload: Any) -> None:
        """Publish an event; return when the broker has it, or raise. ``info(...)`` and the others do the same.

        Args:
            priority: "audit", "debug", "info", "warn", "error", "critical" or "sample".
            ctxt: An object with ``redacted_copy()``, whose result travels along. Any other is left out: a context
                holds secrets, and whoever listens would have them.
            event_type: Such as "compute.instance.create".
            payload: What JSON can carry, or the serializer makes of it.

        Raises:
            ConfigurationError: an invalid argument. Nothing was sent.
            TransientQueuesForbidden: the broker does not permit the queue.
            LabkitError: it could not be sent within 60 s.
        """
        if priority not in PRIORITIES:
            raise refused("priority", priority, ", ".join(PRIORITIES))
        serializer, redact = self._serializer, getattr(ctxt, "redacted_copy", None)
        message = {
            "message_id": str(uuid.uuid4()),
            "publisher_id": self.publisher_id,
            "event_type": event_type,
            "priority": priority.upper(),
            "payload": serializer.serialize_entity(ctxt, payload),
            "timestamp": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        }
        safe = serializer.serialize_context(redact() if callable(redact) else {})
        for topic in self._topics:
            self.transport.driver.send_notification(
                Target(exchange=self._exchange, topic=f"{topic}.{priority}"),
                safe,
                message,
                VERSIONS[self._driver],
                retry=self._retry,
            )

    audit = partialmethod(notify, "audit")
    debug = partialmethod(notify, "debug")
    info = partialmethod(notify, "info")
    warn = partialmethod(notify, "warn")
    warning = partialmethod(notify, "warn")
    error = partialmethod(notify, "error")
    critical = partialmethod(notify, "critical")
    sample = partialmethod(notify, "sample")


class NotificationListener(MessageServer):
    """Has methods of *endpoints* called: ``info(ctxt, publisher_id, event_type, payload, metadata)`` for that priority.

    A notification is acknowledged after the methods have returned: it is handled at least once. If one raises, or
    returns ``NotificationResult.REQUEUE``, it goes back to its queue, and comes again at once.

    Args:
        transport: The way to the broker.
        targets: Topics, with their exchanges.
        endpoints: Objects with methods named like priorities; only those priorities are listened to.
        pool: Listeners of one pool share what comes, and every pool gets all of it; None: the one queue that everybody
            shares who names no pool.
        allow_requeue: Whether anything goes back to its queue. False: what failed is logged, and gone.
        serializer: Turns payloads into the program's own objects.
        workers: How many are handled at once, 1 to 1000; one after the other with 1.

    Raises:
        ConfigurationError: an invalid argument; endpoints without such methods. The constructor does no I/O.
    """

    _settles_late = True

    def __init__(
        self,
        transport: Transport,
        targets: Iterable[Target],
        endpoints: Iterable[Any],
        *,
        pool: str | None = None,
        allow_requeue: bool = True,
        serializer: Serializer | None = None,
        workers: int = WORKERS,
    ) -> None:
        super().__init__(transport, workers=workers)
        self.targets = checked_items("targets", targets, "Targets")
        self._endpoints = checked_items("endpoints", endpoints, "objects")
        for each in self.targets:
            check_type("targets", each, Target)
            each.needed("topic")
        self._pool = None if pool is None else checked_name("pool", pool)
        self._allow_requeue = checked_flag("allow_requeue", allow_requeue)
        self._serializer = checked_serializer(serializer)
        self._priorities = [each for each in PRIORITIES if self._methods(each)]
        if not self._priorities or not self.targets:
            allowed = f"targets, and objects with methods named {', '.join(PRIORITIES)}"
            raise ConfigurationError(
                f"endpoints: there is nothing to listen to; allowed: {allowed}", field="endpoints", allowed=allowed
            )
        for priority in self._priorities:
            for method in self._methods(priority):
                checked_callable("endpoints", method, "a plain method")

    def _methods(self, priority: str) -> list[Any]:
        found = (getattr(each, priority, None) for each in self._endpoints)
        return [each for each in found if callable(each)]

    def _listen(self, deadline: float) -> Listener:
        pairs = [(target, priority) for target in self.targets for priority in self._priorities]
        return self.transport.driver.listen_for_notifications(pairs, self._pool, self._arrived, deadline=deadline)

    def _arrived(self, incoming: IncomingNotification) -> bool:
        return self._hand_over(lambda: self._handle(incoming))

    def _handle(self, incoming: IncomingNotification) -> None:
        try:
            result = self._call_endpoints(incoming)
        except BaseException:  # SystemExit too: it ends no thread of ours, and the notification is not to be lost
            LOGGER.exception("an endpoint for notifications failed")
            result = NotificationResult.REQUEUE
        if result is NotificationResult.REQUEUE and self._allow_requeue:
            incoming.requeue()
        else:
            incoming.acknowledge()

    def _call_endpoints(self, incoming: IncomingNotification) -> NotificationResult:
        told, serializer = incoming.notification, self._serializer
        if told.priority not in PRIORITIES:
            LOGGER.warning("dropped a notification of the unknown priority %r", told.priority)
            return NotificationResult.HANDLED
        ctxt = serializer.deserialize_context(told.context)
        payload = serializer.deserialize_entity(ctxt, told.payload)
        for method in self._methods(told.priority):
            if method(ctxt, told.publisher_id, told.event_type, payload, told.metadata) is NotificationResult.REQUEUE:
                return NotificationResult.REQUEUE
        return NotificationResult.HANDLED


def _names(field: str, names: Iterable[str]) -> tuple[str, ...]:
    given = checked_items(field, names, "names")
    if not given:
        raise refused(field, names, "names, in a list")
    return tuple(checked_name(field, each) for each in given)
