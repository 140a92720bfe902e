"""Exercises of 05: an adapter for each of five programs; a probe that ends whatever the broker says (run on it)."""

import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError

from labkit import brokers
from labkit.factory import ConnectionFactory
from labkit.lab.checks import Exercise, checked_function, run
from labkit.printable import a_type
from labkit.settings.settings import BrokerSettings
from labkit.trials import NotYet

VIRTUAL_HOST = "lab-05"
CHOICES = ("blocking", "select", "asyncio", "tornado", "gevent", "twisted", "libev", "connect")

# The program: what fits, and what to say to each choice that does not. "*" is for the rest.
PROGRAMS: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "nightly report": (
        ("blocking",),
        {
            "connect": "a thread of its own, for a script that does one thing after the other and ends?",
            "*": "which kind lets a script call one method after the other, with no loop to run?",
        },
    ),
    "seat map": (
        ("tornado", "asyncio"),  # Tornado's IOLoop is asyncio's since Tornado 5
        {
            "blocking": "while it waits for the broker, every browser waits for the seat map",
            "select": "its loop needs a thread, and Tornado's has it already",
            "*": "a loop runs there already: whose?",
        },
    ),
    "scanner gateway": (
        ("gevent",),
        {
            "blocking": "with patched sockets it does not stop the others, and while a greenlet computes or waits for "
            "something else nobody serves its heartbeats",
            "*": "5,000 greenlets wait on one hub: which adapter waits on the same one?",
        },
    ),
    "ticket service": (
        ("asyncio",),
        {
            "blocking": "one blocked call stops every request of the service",
            "tornado": "it would work, as Tornado's loop is asyncio's; but why install Tornado for it?",
            "*": "an async def already runs on a loop: which adapter joins it?",
        },
    ),
    "label printers": (
        ("connect",),
        {
            "blocking": "one thread owns it; the other seven may not publish on it",
            "select": "it is owned by the thread of its loop; you would have to write the hand-over for eight threads",
            "*": "eight threads, one connection, and no loop anywhere: who can serve it for all of them?",
        },
    ),
}

HANG = 4.0  # seconds after which a loop that nobody stopped is stopped


def _five_programs(answer: object) -> str:
    if not isinstance(answer, Mapping):
        raise NotYet(f"answer should be a dictionary from program to adapter; it is {a_type(answer)}")
    missing = [name for name in PROGRAMS if name not in answer]
    if missing:
        raise NotYet(f"there is no choice for: {', '.join(missing)}")
    for name, (fitting, hints) in PROGRAMS.items():
        choice = answer[name]
        if choice not in CHOICES:
            raise NotYet(f"{name}: {choice!r} is no method of the factory here; choose from {', '.join(CHOICES)}")
        if choice not in fitting:
            raise NotYet(f"{name}: {hints.get(choice, hints['*'])}")
    return "each program keeps its own loop, and the one without a loop gets a connection that brings one"


class _Watched(ConnectionFactory):
    """A factory that sees which connections were made, and stops a loop that nobody stops."""

    def __init__(self, settings: BrokerSettings) -> None:
        super().__init__(settings)
        self.made: list[Any] = []
        self.hung = False

    def select(self, **callbacks: Any) -> Any:
        """Return the connection, watched."""
        connection = super().select(**callbacks)
        self.made.append(connection)

        def stop() -> None:
            self.hung = True
            connection.ioloop.stop()

        connection.ioloop.call_later(HANG, stop)
        return connection

    def tidy(self) -> None:
        """Close what was left open, so that the broker lists nothing of it."""
        for connection in self.made:
            loop, transport = connection.ioloop, connection._transport

            def stop(*_: Any, loop: Any = loop) -> None:
                loop.stop()

            with contextlib.suppress(Exception):  # whatever state the learner's code left it in
                if not connection.is_closed:
                    connection.add_on_open_error_callback(stop)
                    connection.add_on_close_callback(stop)
                    if not connection.is_closing:
                        connection.close()
                    loop.call_later(HANG, stop)
                    loop.start()
            with contextlib.suppress(Exception):
                loop.close()
            if transport is not None and not connection.is_closed:  # its loop was closed under it: nobody can ask
                transport._sock.close()


def _probe(answer: object) -> str:
    checked_function(answer)
    good = brokers.up().settings(VIRTUAL_HOST).replace(connection_name=VIRTUAL_HOST)
    with _nobody_listens() as port:
        cases = (
            ("a broker that lets you in", good, "open"),
            ("a wrong password", good.replace(password="not-this-one"), "REFUSED"),  # noqa: S106 - it is to be wrong
            ("a port where nobody listens", good.replace(host="127.0.0.1", port=port), "TRANSIENT"),
        )
        for case, settings, expected in cases:
            _try(answer, case, settings, expected)
    return "it says open, REFUSED or TRANSIENT, its loop ends each time, and it leaves nothing open"


def _try(answer: object, case: str, settings: BrokerSettings, expected: str) -> None:
    factory = _Watched(settings)
    try:
        said = _run(answer, case, factory)
        if not factory.made:
            raise NotYet("probe(factory) should call factory.select(…) once")
        if factory.hung:
            raise NotYet(f"{case}: the loop never stops. Which callback runs then, and does it call ioloop.stop()?")
        if any(connection.is_open for connection in factory.made):
            raise NotYet(f"{case}: it left the connection open. Who calls close()?")
        if any(not (connection.is_closing or connection.is_closed) for connection in factory.made):
            raise NotYet(f"{case}: nothing happened. Nobody ran connection.ioloop to its end")
        if not all(connection.is_closed for connection in factory.made):
            raise NotYet(
                f"{case}: the loop was stopped before the broker's CloseOk came, so the connection is half closed. "
                "Stop the loop in on_close_callback"
            )
        if said != expected:
            raise NotYet(f"{case}: it should return {expected!r}; it returned {said!r}")
    finally:
        factory.tidy()


def _run(answer: object, case: str, factory: _Watched) -> object:
    try:
        return run(answer, factory)
    except NotYet:
        raise
    except Exception as exc:
        clue = ". Is there an on_open_error_callback?" if isinstance(exc, (AMQPError, AMQPConnectorException)) else ""
        raise NotYet(f"{case}: it raised {type(exc).__name__}{clue}") from exc


@contextlib.contextmanager
def _nobody_listens() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


EXERCISES = (
    Exercise(
        "05.1",
        _five_programs,
        hints=(
            "Ask of each program: is there a loop already, and whose is it?",
            "No loop and one thread: blocking. No loop and many threads: connect().",
            "A loop is there: take the adapter of that loop. Tornado's IOLoop is asyncio's, so both fit there.",
        ),
    ),
    Exercise(
        "05.2",
        _probe,
        hints=(
            "Three things can happen: it opens, it does not open, it ends. Each has a callback.",
            "The loop must be stopped on every way out: when it did not open, and when it has closed.",
            "opened: note 'open', close. failed: note classify(error).kind.name, stop. closed: stop.",
        ),
        seconds=30.0,
    ),
)
