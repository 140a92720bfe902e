"""Every way of labkit's to an open connection, asked the same thing; an answer is a plain dictionary.

Twisted, whose reactor starts only once, answers in a process of its own: ``python -m tests.broker.drivers twisted``.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import pika.exceptions as px

from labkit import (
    AsyncConnection,
    BrokerSettings,
    ConfigurationError,
    Connection,
    ConnectionFactory,
    LabkitError,
    Timeline,
    classify,
)
from labkit.extras import extra
from labkit.retry import Backoff
from labkit.verdicts import root_cause
from tests.view import until

WAITING = ("blocking", "connection", "awaited")  # these raise
ON_A_LOOP = ("select", "asyncio", "tornado", "libev", "gevent")  # these call on_open_error_callback
ALL = (*WAITING, *ON_A_LOOP, "twisted")
CANCELLED = tuple(each for each in ALL if each != "blocking")  # its thread waits: only Ctrl-C gets through
PATIENCE = 60.0  # seconds for one driver, on a busy machine


def ask(driver, settings, *, cancel_after=None, names=None, on_event=None):
    """Open a connection by *driver* and close it again; return how that went.

    Args:
        driver: One of ``ALL``.
        settings: Where to connect.
        cancel_after: Seconds after which to give up by the driver's own means.
        names: What the system's resolver says: lists of addresses, None (no such name), or seconds to be silent.
        on_event: Called with the name of each event.
    """
    if driver == "twisted" and on_event is None:
        return _ask_a_process(driver, settings, cancel_after, names)
    heard = Timeline()
    listeners = [heard]
    if on_event is not None:
        listeners.append(lambda event: on_event(type(event).__name__))
    began = time.monotonic()
    told = []  # the error that the caller gets, and when
    with _resolver(names):

        def tell(error):
            told.append((error, time.monotonic() - began))

        OPENERS[driver](settings, listeners, cancel_after, tell)
        returned = time.monotonic() - began
    error, seconds = told[0] if told else (None, returned)
    if driver == "connection" and not isinstance(error, ConfigurationError):  # its events come on their own thread
        until(lambda: heard.names() and heard.names()[-1] in ("ConnectionClosed", "ConnectionGivenUp"), 10)
    given_up = [event.error for event in heard.events if type(event).__name__ == "ConnectionGivenUp"]
    return {
        "opened": "ConnectionOpened" in heard.names(),
        "events": [name for name in heard.names() if name != "ConnectionClosed"],  # of the bring-up
        "told": [fact for event in heard.events if (fact := _facts(event))],
        "error": error and type(error).__name__,
        "is_told_in_family": error is None or isinstance(error, px.AMQPError | LabkitError | asyncio.CancelledError),
        "kind": error and classify(error).kind.name,
        "cause": error and type(root_cause(error.__cause__ if is_ours(error) else error)).__name__,
        "given_up": given_up and type(given_up[0]).__name__,
        "told_after": seconds,
        "returned_after": returned,
        "times_told": len(told),
    }


def _facts(event):
    """What an event of a bring-up says, but for seconds and the text of errors."""
    name, error = type(event).__name__, getattr(event, "error", None)
    if name == "ConnectionClosed":
        return None
    number = event.attempt if hasattr(event, "attempt") else event.attempts
    where = [getattr(event, "host", None), getattr(event, "port", None)]
    return [name, *where, number, getattr(event, "next_delay", None), error and classify(error).kind.name]


def is_ours(error):
    """Whether labkit made it from another; Pika's of 1.5 have causes of their own."""
    return isinstance(error, LabkitError) and error.__cause__ is not None


def ask_all(settings, drivers=ALL, **options):
    """Ask all of *drivers* at the same time; return their answers by name."""
    answers = {}

    def one(driver):
        answers[driver] = ask(driver, settings, **options)

    names = options.pop("names", None)
    with _resolver(names):  # once for all: each of them would put back the other's
        if names is not None:
            options["names"] = names
        threads = [threading.Thread(target=one, args=(driver,)) for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(answers) == sorted(drivers), "some did not end"
    return {driver: answers[driver] for driver in drivers}


# -- the drivers ------------------------------------------------------------------------------------------------------


def _blocking(settings, listeners, cancel_after, tell):
    try:
        ConnectionFactory(settings, listeners=listeners).blocking().close()
    except LabkitError as exc:
        tell(exc)


def _connection(settings, listeners, cancel_after, tell):
    pauses = Backoff(
        initial=settings.retry_delay,
        factor=1.0,
        maximum=settings.retry_delay,
        jitter="none",
        attempts=settings.connection_attempts,
    )  # as the other drivers take them from the settings
    connection = Connection(settings, listeners=listeners, backoff=pauses)
    if cancel_after is not None:
        timer = threading.Timer(cancel_after, connection.close)
        timer.start()
    try:
        connection.open().close()
    except LabkitError as exc:
        tell(exc)


def _awaited(settings, listeners, cancel_after, tell):
    async def main():
        connection = AsyncConnection(settings, listeners=listeners)
        try:
            async with asyncio.timeout(cancel_after):
                await connection.open()
        except TimeoutError as exc:
            tell(exc.__cause__)
        except LabkitError as exc:
            tell(exc)
        await connection.close()

    asyncio.run(main())


def _callbacks(stop, tell):
    def failed(_, error):
        tell(error)
        stop()

    return {
        "on_open_callback": lambda connection: connection.close(),
        "on_open_error_callback": failed,
        "on_close_callback": lambda *_: stop(),
    }


def _on_a_loop(kind):
    def run(settings, listeners, cancel_after, tell):
        options = {}
        if kind == "tornado":
            from tornado.ioloop import IOLoop

            options["custom_ioloop"] = IOLoop(make_current=False)
        factory = ConnectionFactory(settings, listeners=listeners)
        try:
            connection = getattr(factory, kind)(**_callbacks(lambda: loop.stop(), tell), **options)
        except LabkitError as exc:
            tell(exc)
            return
        loop = connection.ioloop
        if cancel_after is not None:
            loop.call_later(cancel_after, connection.close)
        loop.start()
        if kind == "gevent":  # the loop is the whole thread's
            gevent = extra("gevent", "gevent")

            gevent.get_hub().destroy()
        else:
            loop.close()

    return run


def _asyncio(settings, listeners, cancel_after, tell):
    async def main():
        over = asyncio.Event()
        try:
            connection = ConnectionFactory(settings, listeners=listeners).asyncio(**_callbacks(over.set, tell))
        except LabkitError as exc:
            tell(exc)
            return
        if cancel_after is not None:
            asyncio.get_running_loop().call_later(cancel_after, connection.close)
        await over.wait()

    asyncio.run(main())


def _twisted(settings, listeners, cancel_after, tell):
    from twisted.internet import reactor

    def opened(connection):
        connection.closed.addBoth(lambda _: reactor.stop())
        connection.close()

    def failed(failure):
        error = failure.value
        tell(asyncio.CancelledError() if type(error).__name__ == "CancelledError" else error)
        # What was given up may still be on its way: its end is an event, too.
        reactor.callLater(0.0 if cancel_after is None else 1.5, reactor.stop)

    def begin():
        opening = ConnectionFactory(settings, listeners=listeners).twisted()
        opening.addCallbacks(opened, failed)
        if cancel_after is not None:
            reactor.callLater(cancel_after, opening.cancel)

    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=False)


OPENERS = {
    "blocking": _blocking,
    "connection": _connection,
    "awaited": _awaited,
    "asyncio": _asyncio,
    "twisted": _twisted,
    **{kind: _on_a_loop(kind) for kind in ("select", "tornado", "libev", "gevent")},
}


# -- a process of its own, and a resolver that says what it is told ---------------------------------------------------


def _ask_a_process(driver, settings, cancel_after, names):
    question = {"url": settings.to_url(mask=False), "cancel_after": cancel_after, "names": names}
    done = subprocess.run(
        [sys.executable, "-m", "tests.broker.drivers", driver],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def _resolver(names):
    if not names or getattr(socket.getaddrinfo, "is_told", False):
        yield
        return
    real = socket.getaddrinfo

    def told(host, *arguments, **options):
        said = names.get(host, ...)
        if said is ...:
            return real(host, *arguments, **options)
        if said is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if not isinstance(said, list):
            time.sleep(said)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [record for address in said for record in real(address, *arguments, **options)]

    told.is_told = True
    with mock.patch("socket.getaddrinfo", told):
        yield
        for thread in threading.enumerate():  # an answer that comes too late must trouble nobody
            if thread.name == "labkit-dns":
                thread.join(PATIENCE)


def main(driver):
    question = json.load(sys.stdin)
    settings = BrokerSettings.from_url(question["url"])
    answer = ask(
        driver,
        settings,
        cancel_after=question["cancel_after"],
        names=question["names"],
        on_event=lambda name: None,
    )
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
