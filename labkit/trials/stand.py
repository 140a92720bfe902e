"""Where a connection manager is tried: a virtual host, a proxy before it, and a time limit on every call.

The manager may be a learner's: what it does wrong becomes a :class:`NotYet` that says where to look, and a call that
never returns costs seconds and not the lesson.
"""

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, Self

from labkit.brokers import Broker
from labkit.connection.connection import Connection
from labkit.errors import LabkitError
from labkit.messaging.confirmations import Confirmation
from labkit.settings.settings import BrokerSettings
from labkit.topology import Queue
from labkit.trials.not_yet import NotYet
from labkit.wire import Proxy

PATIENCE: Final = 8.0  # seconds for anything that the manager does; one that works needs a fraction of one
LOOK: Final = 0.02  # seconds between two looks


class Manager(Protocol):
    """What is tried: used in a ``with`` block, made from settings."""

    def __enter__(self) -> "Manager":
        """Connect within ``settings.connect_deadline``, or raise."""

    def __exit__(self, *error: object) -> object:
        """End everything."""

    def publish(self, exchange: str, routing_key: str, body: str) -> object:
        """Return when the broker has it, or return a Confirmation; raise if it is not there."""

    def consume(self, queue: str, handler: Callable[[Any], object]) -> object:
        """Return at once; call *handler* with deliveries that have ``body``, bytes or text, and ``ack()``."""


class Call:
    """A call on a thread of its own, with this cell's context, so that what it prints lands there."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._over = threading.Event()
        context = contextvars.copy_context()
        target = lambda: context.run(self._run, function, arguments)  # noqa: E731 - a thread's one line
        threading.Thread(target=target, name="labkit-trial", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether it has returned or raised."""
        return self._over.is_set()

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait until it is over; False if it is not within *seconds*."""
        return self._over.wait(seconds)

    def _run(self, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
        try:
            self.value = function(*arguments)
        except BaseException as exc:  # noqa: BLE001 - SystemExit too: it is the answer to show
            self.error = exc
        finally:
            self._over.set()


class Handler:
    """Acknowledges and remembers. It can be held, so that a fault strikes while it has a delivery in its hands.

    At the end of its ``with`` block it is held no more, or the manager's end would wait for it.

    Args:
        hold_at: At how many different orders it waits for :meth:`release`; each once.
    """

    def __init__(self, *hold_at: int) -> None:
        self.bodies: set[str] = set()
        self._holds = list(hold_at)
        self._held = threading.Event()
        self._may_go_on = threading.Event()

    def __call__(self, delivery: Any) -> None:
        """Handle one delivery; the acknowledgement of a dead link may raise, and the order comes again."""
        body = delivery.body
        self.bodies.add(body if isinstance(body, str) else bytes(body).decode())
        if self._holds and len(self.bodies) >= self._holds[0]:
            self._holds.pop(0)
            self._held.set()
            self._may_go_on.wait(3 * PATIENCE)
            self._may_go_on.clear()
        with contextlib.suppress(Exception):
            delivery.ack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holds.clear()
        self.release()

    def is_held(self) -> bool:
        """Wait until it is held."""
        if not self._held.wait(PATIENCE):
            return False
        self._held.clear()
        return True

    def release(self) -> None:
        """Let it go on."""
        self._may_go_on.set()

    def has(self, *bodies: str, within: float = PATIENCE) -> bool:
        """Wait until it has handled all of *bodies*."""
        return until(lambda: self.bodies >= set(bodies), within)


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until *condition* holds; return whether it did within *seconds*."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(LOOK)
    return True


class Stand:
    """One virtual host with the queues "orders" and "tickets", empty before each trial.

    Args:
        broker: Not scoped.
        make: Makes a manager from settings.
        virtual_host: Made and deleted by :func:`stand`.
    """

    def __init__(self, broker: Broker, make: Callable[[BrokerSettings], Manager], virtual_host: str) -> None:
        self._broker = broker
        self._make = make
        self._virtual_host = virtual_host
        self._settings = broker.vhost(virtual_host).replace(connection_name=virtual_host)
        self.proxy = Proxy(self._settings)

    def settings(self, **changes: Any) -> BrokerSettings:
        """Where the manager is to connect: the proxy."""
        return self.proxy.settings(connect_deadline=PATIENCE, heartbeat=30).replace(**changes)

    def manager(self, **changes: Any) -> Manager:
        """Return a manager that was not entered."""
        made = Call(self._make, self.settings(**changes))
        if not made.wait():
            raise NotYet("making it from settings takes longer than 8 s: a constructor does no I/O")
        if made.error is not None:
            if isinstance(made.error, NotYet):
                raise made.error
            raise NotYet(f"making it from settings raised {name_of(made.error)}")
        for verb in ("__enter__", "__exit__", "publish", "consume"):
            if not callable(getattr(made.value, verb, None)):
                raise NotYet(f"what was made from settings has no {verb}()")
        return made.value  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def managed(self, **changes: Any) -> Iterator[Manager]:
        """A manager inside its ``with`` block."""
        manager = self.manager(**changes)
        entered = self.enter(Call(manager.__enter__))
        with self.inside(manager):
            yield entered

    @contextlib.contextmanager
    def inside(self, manager: Manager) -> Iterator[None]:
        """Leave *manager*, which was entered, at the end, however that comes."""
        try:
            yield
        except BaseException:
            Call(manager.__exit__, None, None, None).wait()
            raise
        self.leave(manager)

    def enter(self, entering: Call) -> Manager:
        """Wait until a manager has been entered."""
        if not entering.wait():
            raise NotYet(f"the broker listens, and after {PATIENCE:g} s 'with' has not gone in")
        if entering.error is not None:
            raise NotYet(f"the broker listens, and 'with' raised {name_of(entering.error)}")
        if entering.value is None:
            raise NotYet("__enter__ returned None: return self")
        return entering.value  # type: ignore[no-any-return]

    def leave(self, manager: Manager) -> None:
        """Leave the ``with`` block of *manager*."""
        leaving = Call(manager.__exit__, None, None, None)
        if not leaving.wait():
            raise NotYet(f"'with' has not come out after {PATIENCE:g} s: a close needs a deadline")
        if leaving.error is not None:
            raise NotYet(f"the end of the 'with' block raised {name_of(leaving.error)}")

    def publish(self, manager: Manager, routing_key: str, body: str, exchange: str = "") -> Call:
        """Begin to publish; the call is over when the outcome is known."""

        def publish() -> None:
            told = manager.publish(exchange, routing_key, body)
            if isinstance(told, Confirmation):
                told.result()

        return Call(publish)

    def must_publish(self, manager: Manager, routing_key: str, body: str, when: str, hint: str) -> None:
        """Publish, and complain unless it works."""
        self.must_end_well(self.publish(manager, routing_key, body), when, hint)

    def must_end_well(self, publishing: Call, when: str, hint: str) -> None:
        """Complain unless *publishing* returns in time."""
        if not publishing.wait():
            raise NotYet(f"{when}, and publish() has not returned after {PATIENCE:g} s. {hint}")
        if publishing.error is not None:
            raise NotYet(f"{when}, and publish() raised {name_of(publishing.error)}. {hint}")

    def consume(self, manager: Manager, queue: str, handler: Handler) -> None:
        """Have *handler* called."""
        consuming = Call(manager.consume, queue, handler)
        if not consuming.wait():
            raise NotYet("consume() does not return: it should start a consumer and return at once")
        if consuming.error is not None:
            raise NotYet(f"consume() raised {name_of(consuming.error)}")

    # What the bench does beside the manager, not through the proxy.

    def reset(self) -> None:
        """Have both queues there, and empty."""
        self.delete("orders", "tickets")
        self.declare("orders", "tickets")

    def declare(self, *queues: str) -> None:
        """Declare *queues*."""
        with Connection(self._settings) as connection, connection.channel() as channel:
            for queue in queues:
                channel.declare(Queue(queue))

    def delete(self, *queues: str) -> None:
        """Delete *queues*, with all in them."""
        with Connection(self._settings) as connection, connection.channel() as channel:
            for queue in queues:
                channel.delete(Queue(queue))

    def fill(self, queue: str, *bodies: str) -> None:
        """Put messages into *queue*."""
        with Connection(self._settings) as connection, connection.channel(confirm=True) as channel:
            for body in bodies:
                channel.publish(body, routing_key=queue, mandatory=True)

    def ready(self, queue: str) -> int:
        """Return how many messages wait in *queue*; those handed out do not count."""
        with Connection(self._settings) as connection, connection.channel() as channel:
            found = channel.declare(Queue(queue), passive=True)
            return 0 if found is None else found.messages

    def drain(self, queue: str) -> list[str]:
        """Take everything out of *queue*."""
        taken = []
        with Connection(self._settings) as connection, connection.channel() as channel:
            while (delivery := channel.get(queue)) is not None:
                taken.append(delivery.body.decode())
                delivery.ack()
        return taken

    def close_connections(self, reason: str) -> None:
        """Have an operator close every connection here."""
        self._broker.close_connections(reason, self._virtual_host)

    def is_left_alone(self) -> bool:
        """Wait until the broker has no connection here any more."""
        return until(lambda: self._broker.count_connections(self._virtual_host) == 0, 2 * PATIENCE)


@contextlib.contextmanager
def stand(broker: Broker, make: Callable[[BrokerSettings], Manager], virtual_host: str) -> Iterator[Stand]:
    """A stand whose virtual host is made now and deleted at the end, with whatever the manager has left open."""
    try:
        place = Stand(broker, make, virtual_host)
        with place.proxy:
            yield place
    finally:
        with contextlib.suppress(LabkitError):
            broker.delete_vhost(virtual_host)


def name_of(error: BaseException) -> str:
    """Return the error's class, and the number that the broker gave: its text may hold what differs from run to run."""
    code = getattr(error, "reply_code", None)
    return f"{type(error).__name__}({code})" if isinstance(code, int) else type(error).__name__
