"""Exercises of 03: a slow handler off the loop, a heartbeat that fits the work. The first one is run on the broker."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from labkit import brokers
from labkit.lab.checks import Exercise, describe, run
from labkit.settings.settings import BrokerSettings
from labkit.trials import NotYet

VIRTUAL_HOST = "lab-03"
QUEUE = "exercise-03.1"
HEARTBEAT = 1  # seconds: the broker gives up after two to three of silence
WORK = 4.0  # seconds of work for the slow order: more than three heartbeats
PATIENCE = 2.5  # seconds beyond the work for the acknowledgements to come

SLOW, QUICK, JAM = b"1000 tickets", b"1 ticket", b"a ticket that jams the printer"

LONGEST_CALL = 25  # seconds one call of exercise 03.2 takes
NOTICED = 60  # seconds within which a dead worker must be noticed


class _Watch:
    """Sees what the learner's handler does: where the work runs, which thread acknowledges, and what.

    Made on the loop's thread. ``work`` runs wherever the handler runs it, so what is written there is written once
    and only read elsewhere.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.worked_on_the_loop = False
        self.started: set[bytes] = set()
        self.finished: set[bytes] = set()
        self.failed: set[bytes] = set()
        self.bodies: dict[int, bytes] = {}
        self.acknowledged: set[bytes] = set()
        self.complaint: str | None = None
        self._loop = threading.get_ident()

    def work(self, body: bytes) -> None:
        """The slow work that the learner's handler is given."""
        self.started.add(body)
        if threading.get_ident() == self._loop:
            self.worked_on_the_loop = True
        if body == SLOW:
            self.over.wait(WORK)
        if body == JAM:
            self.over.wait(0.2)  # a handler that puts it back meets it again: not thousands of times a second
            self.failed.add(body)
            raise RuntimeError("the printer is jammed")
        self.finished.add(body)

    def listen(self, channel: BlockingChannel) -> None:
        """See each acknowledgement, and pass on to Pika those of the loop's thread only."""
        acknowledge = channel.basic_ack

        def basic_ack(delivery_tag: int = 0, multiple: bool = False) -> None:
            if threading.get_ident() != self._loop:
                self.complain(
                    "basic_ack ran on the thread that did the work. It must run on the loop's thread: hand "
                    "add_callback_threadsafe a function that acknowledges, and do not call it yourself"
                )
                return
            tags = [tag for tag in self.bodies if tag == delivery_tag or (multiple and tag <= delivery_tag)]
            for body in (self.bodies[tag] for tag in tags):
                if body in self.failed:
                    self.complain(f"the work for {body.decode()!r} raised, and it was acknowledged: that order is lost")
                elif body not in self.finished:
                    self.complain(
                        f"{body.decode()!r} was acknowledged before its work was done: a crash now would lose it"
                    )
                self.acknowledged.add(body)
            acknowledge(delivery_tag, multiple)

        channel.basic_ack = basic_ack

    def complain(self, text: str) -> None:
        """Keep the first thing that is wrong; what follows from it would only confuse."""
        if self.complaint is None:
            self.complaint = text

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.complaint is not None or (self.acknowledged >= {SLOW, QUICK} and JAM in self.failed)


def _off_the_loop(answer: object) -> str:
    watch = _Watch()
    handler = run(answer, watch.work)
    if not callable(handler):
        raise NotYet(f"off_the_loop(work) should return a handler; it returned {type(handler).__name__}")
    settings = brokers.up().settings(VIRTUAL_HOST).replace(connection_name=VIRTUAL_HOST)
    with _crashes(watch) as crashes, _queue(settings):
        lost = _serve(settings, watch, handler)
        _judge(watch, crashes, lost)
        if not _comes_back(settings):
            raise NotYet(f"{JAM.decode()!r} is gone: when the work raises, the order must go back to the queue")
    return (
        f"2 orders acknowledged, the jammed one kept, the link open after {WORK:g} s of work at heartbeat {HEARTBEAT}"
    )


def _serve(settings: BrokerSettings, watch: _Watch, handler: Callable[..., object]) -> BaseException | None:
    """Feed *handler* until there is nothing to wait for; return what ended the link, or None if it lives."""

    def on_message(channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        watch.bodies[method.delivery_tag] = body
        handler(channel, method, properties, body)

    connection = pika.BlockingConnection(settings.replace(heartbeat=HEARTBEAT).to_pika())
    try:
        channel = connection.channel()
        watch.listen(channel)
        channel.basic_consume(QUEUE, on_message)
        ends = time.monotonic() + WORK + PATIENCE
        while not watch.is_done and time.monotonic() < ends:
            connection.process_data_events(0.1)
    except AMQPError as exc:
        lost: BaseException = exc
        return lost
    except Exception:
        if watch.complaint is None and not watch.worked_on_the_loop:
            raise  # the handler's own; else it follows from what the learner will be told
    finally:
        watch.over.set()
        _hang_up(connection)
    return None


def _hang_up(connection: pika.BlockingConnection) -> None:
    """Close, even if what the learner handed to the loop raises there once more."""
    ends = time.monotonic() + PATIENCE
    while not connection.is_closed and time.monotonic() < ends:
        with contextlib.suppress(Exception):
            if connection.is_open:
                connection.close()
            else:
                connection.process_data_events(0.1)


def _judge(watch: _Watch, crashes: list[str], lost: BaseException | None) -> None:
    ended = "" if lost is None else ", and the link was lost"
    if watch.worked_on_the_loop:
        raise NotYet(f"the work ran on the loop's thread: no heartbeat was sent for {WORK:g} s{ended}")
    if watch.complaint is not None:
        raise NotYet(watch.complaint)
    if lost is not None:
        raise NotYet(
            f"the work ran on another thread, but your handler did not return while it lasted{ended}. "
            "Start the thread and return"
        )
    if not watch.started:
        raise NotYet("work was never called: your handler should hand work(body) to a thread and start it")
    if crashes:
        raise NotYet(f"your thread raised {crashes[0]}")
    missing = {SLOW, QUICK} - watch.acknowledged
    if missing:
        names = ", ".join(sorted(repr(body.decode()) for body in missing))
        raise NotYet(
            f"never acknowledged: {names}. When the work is done, add_callback_threadsafe takes the acknowledgement "
            "to the loop"
        )


def _comes_back(settings: BrokerSettings) -> bool:
    """Whether the order that could not be printed is in the queue again; the broker may need a moment for it."""
    ends = time.monotonic() + PATIENCE
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
        channel = connection.channel()
        while time.monotonic() < ends:
            method, _, body = channel.basic_get(QUEUE, auto_ack=True)
            if method is not None:
                return bool(body == JAM)
            connection.sleep(0.05)
    return False


@contextlib.contextmanager
def _queue(settings: BrokerSettings) -> Iterator[None]:
    """A queue with the three orders in it; gone afterwards."""
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
        channel = connection.channel()
        channel.queue_delete(QUEUE)
        channel.queue_declare(QUEUE, durable=True)
        channel.confirm_delivery()
        for body in (SLOW, QUICK, JAM):
            channel.basic_publish("", QUEUE, body, mandatory=True)
    try:
        yield
    finally:
        with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
            connection.channel().queue_delete(QUEUE)


@contextlib.contextmanager
def _crashes(watch: _Watch) -> Iterator[list[str]]:
    """What the learner's threads raise, told to the learner instead of to the kernel's log.

    The jammed printer is not told: a thread that ends with it is a good answer.
    """
    before = set(threading.enumerate())
    found: list[str] = []
    others = threading.excepthook

    def keep(arguments: threading.ExceptHookArgs) -> None:
        error, thread = arguments.exc_value, arguments.thread
        if thread is None or thread in before or error is None:
            others(arguments)
        elif not watch.over.is_set() and not (isinstance(error, RuntimeError) and "jammed" in str(error)):
            found.append(describe(error))

    threading.excepthook = keep
    try:
        yield found
    finally:
        watch.over.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(0.5)  # it may still want to acknowledge on the closed link, and raise
        threading.excepthook = others


def _heartbeat(answer: object) -> str:
    if not isinstance(answer, BrokerSettings):
        raise NotYet(
            f"answer should be settings, made with lab.settings().replace(...); it is {type(answer).__name__} now"
        )
    heartbeat = answer.heartbeat
    if not isinstance(heartbeat, int):
        raise NotYet("that leaves the choice to the broker, and an operator may change it: name a number")
    if heartbeat == 0:
        raise NotYet("0 switches heartbeats off: the call survives, and a dead worker is never noticed")
    if 2 * heartbeat <= LONGEST_CALL:
        raise NotYet(
            f"two heartbeats are {2 * heartbeat} s: the broker may close the link during a call of {LONGEST_CALL} s"
        )
    if 2 * heartbeat <= LONGEST_CALL + heartbeat / 2:
        raise NotYet(
            f"two heartbeats are {2 * heartbeat} s, and the broker counts from the last one it heard, up to "
            f"{heartbeat / 2:g} s before the call: {LONGEST_CALL + heartbeat / 2:g} s of silence are too many"
        )
    if 3 * heartbeat > NOTICED:
        raise NotYet(
            f"three heartbeats are {3 * heartbeat} s: a dead worker keeps its orders for longer than {NOTICED} s"
        )
    return f"a call of {LONGEST_CALL} s fits into two heartbeats, and a dead worker is noticed within three"


EXERCISES = (
    Exercise(
        "03.1",
        _off_the_loop,
        hints=(
            "Which thread sends the heartbeats? It is the one that your handler keeps waiting.",
            "The handler starts a thread and returns; the thread calls work(body). Which thread may acknowledge?",
            "channel.connection.add_callback_threadsafe(f) makes the loop's thread call f, without arguments.",
            "After work(body): ack = functools.partial(channel.basic_ack, method.delivery_tag), and the loop gets ack.",
        ),
        seconds=20.0,
    ),
    Exercise(
        "03.2",
        _heartbeat,
        hints=(
            "After how many heartbeats of silence may the broker close? After how many does it close at the latest?",
            "Two heartbeats must be longer than the silence: the call, and half a heartbeat before it.",
            "Three heartbeats must not be longer than a minute: what is the largest? It need not be the largest.",
        ),
    ),
)
