"""Eight faults that a connection manager must survive, and what it means to survive each.

    print(run_trials(ConnectionManager))

Any manager may be tried: one that is made from settings, used in a ``with`` block, and has ``publish`` and ``consume``
(``labkit.trials.stand.Manager``). Each fault is injected on a real line, to a real broker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from labkit import brokers
from labkit.settings.settings import BrokerSettings
from labkit.trials.not_yet import NotYet
from labkit.trials.stand import PATIENCE, Call, Handler, Manager, Stand, name_of, stand, until
from labkit.values import checked_callable, checked_flag, checked_items, refused
from labkit.wire import Refuse, ResetPeer, Stall

VIRTUAL_HOST: Final = "lab-09-trials"
SHUT: Final = 0.4  # seconds for which nobody listens at first
SHORT: Final = 0.5  # seconds of a connect_deadline that is to be kept
GRACE: Final = 3.0  # seconds beyond it, for a busy machine
GREEDY: Final = 0.3  # seconds in which a broker without a limit hands out everything
PUBLISHED, CUT_AT = 50, 20  # orders; on each link the one before which it is cut
WAITING, HELD_AT, HELD_AGAIN = 60, 10, 30  # orders in the queue; handled when the link is cut; and when we look again
DURING_ALARM: Final = 30  # orders to be handled while the broker reads nothing from who publishes


def _nobody_listens(place: Stand) -> str:
    manager = place.manager()
    with place.proxy.fault(Refuse()):
        entering = Call(manager.__enter__)
        if entering.wait(SHUT):
            if entering.error is None:
                Call(manager.__exit__, None, None, None).wait()
                raise NotYet("the port is shut, and 'with' went in. What does it hold?")
            raise NotYet(
                f"the port is shut for a moment, and 'with' raised {name_of(entering.error)} at once. "
                f"connect_deadline leaves {PATIENCE:g} s: try again until then"
            )
    entered = place.enter(entering)
    with place.inside(manager):
        place.must_publish(entered, "orders", "1", "'with' went in", "It should be able to publish then")
    late = place.manager(connect_deadline=SHORT)
    with place.proxy.fault(Refuse()):
        entering = Call(late.__enter__)
        if not entering.wait(SHORT + GRACE):
            raise NotYet(f"nobody listens, connect_deadline is {SHORT:g} s, and 'with' still waits")
        if entering.error is None:
            Call(late.__exit__, None, None, None).wait()
            raise NotYet("nobody listens, and 'with' went in: its body would find out. Let the error out")
    return "it waits for the port, and raises when time is up"


def _cut_while_publishing(place: Stand) -> str:
    orders = [str(number) for number in range(PUBLISHED)]
    with place.managed() as manager:
        fault = place.proxy.fault(ResetPeer(), direction="upstream", at_frame="Basic.Publish", count=CUT_AT)
        with fault:
            for order in orders:
                hint = "Keep the message, reconnect, and send it again"
                place.must_publish(manager, "orders", order, "the link was cut in the middle of a publish", hint)
        if not fault.links:
            raise NotYet("no link carried many publishes: a connection for each order costs more than the order")
    missing = set(orders) - set(place.drain("orders"))
    if missing:
        text = f"publish() returned for {len(missing)} orders that are not in the queue"
        raise NotYet(f"{text}. What is written to a socket may never arrive: wait for the confirm")
    return f"{PUBLISHED} orders confirmed, 0 missing"


def _cut_while_consuming(place: Stand) -> str:
    orders = [str(number) for number in range(WAITING)]
    place.fill("orders", *orders)
    handler = Handler(HELD_AT, HELD_AGAIN)
    with place.managed() as manager, handler:
        place.consume(manager, "orders", handler)
        if not handler.is_held():
            raise NotYet(f"{len(handler.bodies)} of {WAITING} orders reached the handler")
        _must_have_a_prefetch(place, "")
        place.proxy.cut(reset=True)
        handler.release()
        if not handler.is_held():
            text = f"the link was cut, and {len(handler.bodies)} of {WAITING} orders were handled, then no more"
            raise NotYet(f"{text}. Who consumes on the new link?")
        _must_have_a_prefetch(place, "after the cut ")
        handler.release()
        if not handler.has(*orders):
            raise NotYet(f"{len(handler.bodies)} of {WAITING} orders were handled, then no more")
    left = place.ready("orders")
    if left:
        raise NotYet(f"{left} orders were handled, and came back at the end: somebody must send their acknowledgements")
    return f"{WAITING} orders handled, the prefetch holds on the new link"


def _must_have_a_prefetch(place: Stand, when: str) -> None:
    if until(lambda: place.ready("orders") == 0, GREEDY):
        raise NotYet(f"{when}the broker has handed out every order while one is being handled. Set a prefetch")


def _silence(place: Stand) -> str:
    handler = Handler()
    hint = "A heartbeat notices the silence. Reconnect then, and send again what is not confirmed"
    with place.managed(heartbeat=1) as manager:
        place.consume(manager, "orders", handler)
        place.must_publish(manager, "orders", "before", "all is well", "")
        with place.proxy.fault(Stall()):
            publishing = place.publish(manager, "orders", "during")
            place.is_left_alone()  # the broker notices the silence too
            place.proxy.cut()
        place.must_end_well(publishing, "the link was silent for three heartbeats", hint)
        if not handler.has("before", "during"):
            raise NotYet(f"the link was silent for three heartbeats, and nothing is consumed since. {hint}")
    return "noticed on both sides, published and consumed after it"


def _no_exchange(place: Stand) -> str:
    with place.managed() as manager:
        for exchange, queue, what, hint in (
            ("no such exchange", "orders", "a missing exchange", "The broker closed the channel (404); confirms tell"),
            ("", "no such queue", "a queue that is missing", "The broker dropped it; mandatory=True makes it say so"),
        ):
            publishing = place.publish(manager, queue, "lost", exchange)
            if not publishing.wait():
                raise NotYet(f"publish() to {what} never returns. Give it a deadline")
            if publishing.error is None:
                raise NotYet(f"publish() to {what} returned as if the order were safe. {hint}")
        hint = "A 404 costs the channel, and not the connection: open another one"
        place.must_publish(manager, "orders", "good", "a publish failed", hint)
    if place.drain("orders") != ["good"]:
        raise NotYet("the order after the failed ones is not in its queue exactly once")
    return "both are reported, the next order is confirmed"


def _operator(place: Stand) -> str:
    handler = Handler()
    with place.managed() as manager:
        place.consume(manager, "orders", handler)
        place.must_publish(manager, "orders", "before", "all is well", "")
        if not handler.has("before"):
            raise NotYet("all is well, and the order did not reach the handler")
        place.close_connections("maintenance tonight")
        hint = "320 says that the broker may be back in a moment: reconnect"
        place.must_publish(manager, "orders", "after", "an operator closed the connections (320)", hint)
        if not handler.has("after"):
            raise NotYet("an operator closed the connections (320), and nothing is consumed since")
    return "published and consumed again"


def _alarm(place: Stand) -> str:
    orders = [str(number) for number in range(DURING_ALARM)]
    place.fill("orders", *orders)
    handler = Handler(1)
    with place.managed() as manager, handler:
        place.must_publish(manager, "tickets", "before", "all is well", "")
        place.consume(manager, "orders", handler)
        if not handler.is_held():
            raise NotYet(f"{len(handler.bodies)} of {DURING_ALARM} orders reached the handler")
        with place.proxy.fault(Stall(), direction="upstream", at_frame="Basic.Publish") as fault:
            publishing = place.publish(manager, "tickets", "during")
            fault.wait(PATIENCE)
            handler.release()
            is_handled = handler.has(*orders, within=PATIENCE / 2)
            is_early = publishing.is_over and publishing.error is None
        if is_early:
            raise NotYet("the broker had read nothing, and publish() returned as if the ticket were safe")
        if not is_handled:
            handled = f"{len(handler.bodies)} of {DURING_ALARM} orders were handled"
            hint = "Which link do acknowledgements take?"
            raise NotYet(f"the broker stopped reading from whoever publishes, and {handled}. {hint}")
        hint = "It only had to wait"
        place.must_end_well(publishing, "the broker stopped reading for a moment", hint)
    return f"{DURING_ALARM} orders handled meanwhile, the publish waited"


def _deleted_queue(place: Stand) -> str:
    handler = Handler()
    with place.managed() as manager:
        place.consume(manager, "orders", handler)
        place.fill("orders", "before")
        if not handler.has("before"):
            raise NotYet("all is well, and the order did not reach the handler")
        place.delete("orders")
        place.declare("orders")
        place.fill("orders", "after")
        if not handler.has("after"):
            text = "the queue was deleted and made again, and nothing is consumed since"
            raise NotYet(f"{text}. The broker has cancelled the consumer; the link is well")
    return "consumes from the new queue"


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault.

    Attributes:
        number: From 1.
        fault: Its name.
        strike: Does it to the manager on a stand; returns what was seen, or raises NotYet.
    """

    number: int
    fault: str
    strike: Callable[[Stand], str]


EIGHT: Final = tuple(
    Trial(number, fault, strike)
    for number, (fault, strike) in enumerate(
        (
            ("nobody listens at first", _nobody_listens),
            ("a cut while publishing", _cut_while_publishing),
            ("a cut while consuming", _cut_while_consuming),
            ("a silent link", _silence),
            ("no such exchange (404)", _no_exchange),
            ("an operator closes (320)", _operator),
            ("the broker reads no publishes", _alarm),
            ("the queue is deleted", _deleted_queue),
        ),
        1,
    )
)


@dataclass(frozen=True, slots=True)
class Result:
    """How a manager did in one trial."""

    trial: Trial
    passed: bool
    said: str

    def __str__(self) -> str:
        return f"{self.trial.number}  {self.trial.fault:<30} {'PASS' if self.passed else 'NOT YET':<8} {self.said}"


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in order; its text is a table."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> int:
        """How many faults were survived."""
        return sum(1 for each in self.results if each.passed)

    @property
    def first_failure(self) -> Result | None:
        """The first fault that was not; None: there is none."""
        return next((each for each in self.results if not each.passed), None)

    def __str__(self) -> str:
        return "\n".join(map(str, self.results))


def run_trials(
    make: Callable[[BrokerSettings], Manager], *, numbers: tuple[int, ...] = (), stop_early: bool = False
) -> Report:
    """Try what *make* makes from settings under each fault, and return how it did.

    Args:
        make: A class or function of one argument, settings.
        numbers: Only these trials; empty: all.
        stop_early: Whether the first failure ends it.

    Raises:
        BrokerError: there is no broker.
        ConfigurationError: *make* cannot be called; there is no trial of that number.
    """
    checked_callable("make", make, "a class, or a function of one argument, settings")
    checked_flag("stop_early", stop_early)
    known = [trial.number for trial in EIGHT]
    for number in checked_items("numbers", numbers, "numbers"):
        if number not in known:
            raise refused("numbers", number, f"{known[0]} to {known[-1]}")
    results: list[Result] = []
    with stand(brokers.up(), make, VIRTUAL_HOST) as place:
        for trial in EIGHT:
            if numbers and trial.number not in numbers:
                continue
            place.reset()
            try:
                results.append(Result(trial, passed=True, said=trial.strike(place)))
            except NotYet as hint:
                results.append(Result(trial, passed=False, said=str(hint)))
                if stop_early:
                    break
    return Report(tuple(results))
