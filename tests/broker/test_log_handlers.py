"""A log handler that publishes by the connection of which it hears: what would wait for its own thread is refused."""

import logging
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import labkit
from labkit import (
    Connection,
    ConnectionPool,
    DeadlineExceeded,
    LabkitError,
    OutcomeUnknown,
    Publisher,
    Queue,
    State,
    WrongThread,
)
from labkit.wire import Proxy, Refuse
from tests.broker.connections import BRISK, SLACK, own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker
LONG = 20.0  # seconds that a publish may take: nobody may wait so long
PAGE = (Path(labkit.__file__).parent.parent / "docs" / "logging.md").read_text(encoding="utf-8")
IO, RECOVERY, KEEPER = "labkit-io", "labkit-recovery", "labkit-pool-keeper"


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@contextmanager
def everything_is_logged():
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        yield root
    finally:
        root.setLevel(level)


class OnTheRoot(logging.Handler):
    """Publishes whatever anybody logs, and notes on which thread, with which error, and how long that took."""

    def __init__(self, publish):
        super().__init__(logging.DEBUG)
        self._publish = publish
        self._inside = threading.local()
        self.errors, self.longest = {}, 0.0

    def emit(self, record):
        if getattr(self._inside, "yes", False):
            return
        self._inside.yes, began = True, time.monotonic()
        try:
            self._publish(record.getMessage()[:200])
        except LabkitError as exc:
            self.errors.setdefault(threading.current_thread().name, set()).add(type(exc))
        finally:
            self._inside.yes = False
            self.longest = max(self.longest, time.monotonic() - began)

    @contextmanager
    def at_work(self):
        with everything_is_logged() as root:
            root.addHandler(self)
            try:
                yield self
            finally:
                root.removeHandler(self)


def test_a_handler_that_publishes_by_the_connection_of_which_it_hears_holds_up_neither_opening_nor_recovery(settings):
    with Proxy(settings) as proxy:
        connection = Connection(proxy.settings(heartbeat=5), recovery=True, backoff=BRISK)
        publisher = Publisher(connection)
        publish = lambda text: publisher.publish(text, routing_key="log", mandatory=False, deadline=LONG)  # noqa: E731
        with OnTheRoot(publish).at_work() as handler:
            publisher.open(deadline=LONG)
            with proxy.fault(Refuse()):
                proxy.cut()
                until(lambda: WrongThread in handler.errors.get(RECOVERY, ()))
            connection.wait_for(State.OPEN, timeout=LONG)
            publish("at work").result()
            publisher.close()
            connection.close()
        assert handler.longest < SLACK
        assert WrongThread in handler.errors.get(IO, {WrongThread})  # it logs as it starts, which may be long ago


def test_a_handler_that_uses_the_pool_of_which_it_hears_does_not_hold_up_its_upkeep(settings):
    with Proxy(settings) as proxy:
        pool = ConnectionPool(proxy.settings(heartbeat=5), max_size=1, timeout=LONG, _backoff=BRISK)
        with pool, OnTheRoot(lambda text: pool.checkout().checkin()).at_work() as handler:
            pool.open(wait=True, timeout=LONG)
            proxy.cut()
            until(lambda: WrongThread in handler.errors.get(KEEPER, ()))
            until(lambda: pool.get_stats().idle == 1)
        assert handler.longest < SLACK


def test_what_would_wait_for_its_own_thread_is_refused_on_the_thread_that_opens(settings):
    """As a log handler does, or a signal handler, amid open()."""
    refused = []

    class Asking(logging.Handler):
        def emit(self, record):
            if threading.current_thread() is threading.main_thread():
                for wait in (connection.open, lambda: connection.wait_for(State.OPEN, timeout=LONG)):
                    with pytest.raises(WrongThread, match="bringing the connection up"):
                        wait()
                    refused.append(record.name)

    logger, handler = logging.getLogger("labkit.connector.plan"), Asking()
    with Proxy(settings) as proxy, proxy.fault(Refuse()):
        connection = Connection(proxy.settings())
        logger.addHandler(handler)
        try:
            with pytest.raises(LabkitError):
                connection.open(deadline=0.5)
        finally:
            logger.removeHandler(handler)
    assert refused


def test_a_handler_that_waits_while_it_holds_its_lock_ends_by_its_deadline_and_costs_no_link(settings):
    """The I/O thread logs meanwhile, and waits for that lock."""

    def publish(text):
        publisher.publish(text, routing_key="log", mandatory=False, deadline=1.0).result()

    with Publisher(settings) as publisher, OnTheRoot(publish).at_work() as handler:
        logging.getLogger("an.application").info("at work")
        assert handler.errors.get("MainThread", set()) <= {DeadlineExceeded, OutcomeUnknown}
        assert handler.longest < 1.0 + SLACK
        until(lambda: publisher.connection.is_open and publisher.in_flight == 0)
        assert publisher.connection.generation == 1


def test_the_recipe_of_the_docs_publishes_each_record_once_and_no_log_call_waits(settings):
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    application, texts = logging.getLogger("an.application"), [f"record {number}" for number in range(60)]
    with Proxy(settings) as proxy, Connection(settings) as reading, everything_is_logged() as root:
        channel = reading.channel()
        channel.delete(Queue("log"))
        channel.declare(Queue("log"))
        with Publisher(proxy.settings(heartbeat=5)) as publisher:
            names = {"publisher": publisher}
            exec(compile(recipe, "docs/logging.md", "exec"), names)
            try:
                for number, text in enumerate(texts):
                    if number == len(texts) // 2:
                        proxy.cut()
                    began = time.monotonic()
                    application.debug(text)
                    assert time.monotonic() - began < SLACK
            finally:
                root.removeHandler(names["handler"])
                names["listener"].stop()
            publisher.flush(timeout=LONG)
        got = []
        while (delivery := channel.get("log", auto_ack=True)) is not None:
            got.append(delivery.body.decode())
        assert sorted(set(got)) == sorted(texts)  # some twice, where an answer was lost
        assert len(got) < 2 * len(texts)
