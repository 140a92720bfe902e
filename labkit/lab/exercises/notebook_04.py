"""Exercises of 04: a connect that gives up in time, and many confirms at once. Both are run on the broker.

A check runs in a thread of its own, so a learner's coroutine gets an event loop of that thread: the notebook's own loop
stands still while the cell with the check runs.
"""

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError

from labkit import brokers
from labkit.direct.aio import AsyncConnection
from labkit.lab.checks import Exercise
from labkit.settings.settings import BrokerSettings
from labkit.topology import Message
from labkit.trials import NotYet
from labkit.wire import Latency, Proxy

VIRTUAL_HOST = "lab-04"
PATIENCE = 2.0  # seconds beyond the limit that the learner was given
LIMIT = 0.4  # seconds that connect() may wait for a machine that says nothing

FULL_QUEUE = "exercise-04.2"
ROOM = 3  # messages the queue takes; it refuses the others
TEXTS = [f"order {number}" for number in range(1, 9)]


def _connect(answer: object) -> str:
    asyncio.run(_examine_connect(_coroutine_function(answer, "connect")))
    return "it opens, it raises, it gives up in time, and it leaves no socket behind"


async def _examine_connect(connect: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    # What a wrong answer leaves in callbacks is not for the kernel's log: the learner is told in words.
    asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
    settings = brokers.up().settings(VIRTUAL_HOST)
    await _opens(connect, settings)
    await _raises(connect, settings)
    await _gives_up(connect, settings)
    await _is_cancelled(connect, settings)


async def _opens(connect: Callable[..., Any], settings: BrokerSettings) -> None:
    with Proxy(settings, tapped=False) as proxy, proxy.fault(Latency(0.05), direction="both"):
        outcome = await _ended(connect(proxy.settings(), 10.0), 10.0)
        if isinstance(outcome, BaseException):
            raise outcome
        if not isinstance(outcome, AsyncioConnection):
            with contextlib.suppress(Exception):
                outcome.close()
            raise NotYet(f"connect should return the AsyncioConnection; it returned {type(outcome).__name__}")
        if not outcome.is_open:
            await _until(lambda: outcome.is_open or outcome.is_closed)
            raise NotYet("on a slow link connect returned before the connection was open: await the event, not a time")
        outcome.close()
        await _until(lambda: outcome.is_closed)


async def _raises(connect: Callable[..., Any], settings: BrokerSettings) -> None:
    outcome = await _ended(connect(settings.replace(port=1), 1.0), 1.0)
    if isinstance(outcome, TimeoutError):
        raise NotYet(
            "nobody listens on that port, and connect waited until its time was over: on_open_error_callback knows it "
            "at once"
        )
    if not isinstance(outcome, BaseException):
        raise NotYet(f"nobody listens on that port, and connect returned {type(outcome).__name__} instead of raising")
    if not isinstance(outcome, AMQPError | OSError):
        raise outcome


async def _gives_up(connect: Callable[..., Any], settings: BrokerSettings) -> None:
    async with _silent_machine(settings) as (there, hangs_up):
        outcome = await _ended(connect(there, LIMIT), LIMIT)
        if isinstance(outcome, AMQPError):
            raise NotYet(f"a silent machine: connect raised {type(outcome).__name__}; it should be TimeoutError")
        if not isinstance(outcome, TimeoutError):
            what = "returned" if not isinstance(outcome, BaseException) else f"raised {type(outcome).__name__}"
            raise NotYet(f"a silent machine: after {LIMIT:g} s connect {what}; it should raise TimeoutError")
        if not await hangs_up():
            raise NotYet("connect gave up, and its socket is still open: close the connection before you raise")


async def _is_cancelled(connect: Callable[..., Any], settings: BrokerSettings) -> None:
    async with _silent_machine(settings) as (there, hangs_up):
        task = asyncio.create_task(connect(there, 60.0))
        await asyncio.wait({task}, timeout=0.2)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        if not task.cancelled():
            what = "goes on" if not task.done() else f"ended with {task.exception() or task.result()!r}"
            raise NotYet(f"a cancelled connect {what}: let CancelledError through, after you have cleaned up")
        if not await hangs_up():
            raise NotYet("connect was cancelled, and its socket is still open: CancelledError needs the clean-up, too")


async def _ended(coroutine: Coroutine[Any, Any, Any], limit: float) -> Any:
    """Return what the learner's coroutine returned or raised."""
    task = asyncio.create_task(coroutine)
    await asyncio.wait({task}, timeout=limit + PATIENCE)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        raise NotYet(f"connect was still waiting {PATIENCE:g} s after its {limit:g} s were over")
    return task.exception() or task.result()


@contextlib.asynccontextmanager
async def _silent_machine(settings: BrokerSettings) -> AsyncIterator[tuple[BrokerSettings, Callable[[], Any]]]:
    """A machine that accepts connections and says nothing; and whether the last one was hung up."""
    loop = asyncio.get_running_loop()
    accepted: list[socket.socket] = []

    async def hangs_up() -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                if not accepted:
                    accepted.append((await loop.sock_accept(listener))[0])
                while await loop.sock_recv(accepted[0], 4096):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        try:
            yield settings.replace(host="127.0.0.1", port=listener.getsockname()[1]), hangs_up
        finally:
            for each in accepted:
                each.close()
            await asyncio.sleep(0.05)  # what a wrong answer left open notices the end, and closes its socket


def _publish_all(answer: object) -> str:
    publish_all = _coroutine_function(answer, "publish_all")
    settings = brokers.up().settings(VIRTUAL_HOST)
    with _full_queue(settings):
        return asyncio.run(_examine_publish_all(publish_all, settings))


async def _examine_publish_all(publish_all: Callable[..., Any], settings: BrokerSettings) -> str:
    async with _Counting(settings, declare=False) as connection:
        try:
            async with asyncio.timeout(PATIENCE + 2):
                refused = await publish_all(connection, FULL_QUEUE, list(TEXTS))
        except TimeoutError:
            raise NotYet("publish_all did not end") from None
        if connection.under_way:
            raise NotYet(f"publish_all returned while {connection.under_way} publishes were under way: await them")
        if connection.published != len(TEXTS):
            raise NotYet(f"{connection.published} texts were published; there are {len(TEXTS)}")
        if connection.most != len(TEXTS):
            raise NotYet(f"at most {connection.most} of {len(TEXTS)} publishes were under way at once: gather them")
    _judge_refused(refused)
    return f"{len(TEXTS)} publishes at once, and the {len(TEXTS) - ROOM} that were refused are named"


def _judge_refused(refused: object) -> None:
    expected = TEXTS[ROOM:]
    if refused == expected:
        return
    if not isinstance(refused, list):
        raise NotYet(f"publish_all should return a list of texts; it returned {type(refused).__name__}")
    if refused == TEXTS[:ROOM]:
        raise NotYet("these are the texts that were confirmed; the others are asked for")
    if not refused:
        raise NotYet(f"the queue took {ROOM} of {len(TEXTS)} messages, and publish_all says that none was refused")
    if any(not isinstance(each, str) for each in refused):
        raise NotYet("the list should hold the texts that were not confirmed, and it holds other things, too")
    if sorted(refused) == sorted(expected):
        raise NotYet("these are the right texts; their order is not that of the argument")
    raise NotYet(f"publish_all should return {expected[0]!r} to {expected[-1]!r}; it returned {len(refused)} texts")


class _Counting(AsyncConnection):
    """Counts how many publishes are under way at once."""

    under_way = most = published = 0

    async def publish(self, queue: str, message: Message | str | bytes, **keywords: Any) -> None:
        self.published += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await super().publish(queue, message, **keywords)
        finally:
            self.under_way -= 1


@contextlib.contextmanager
def _full_queue(settings: BrokerSettings) -> Iterator[None]:
    """A queue with little room; gone afterwards."""
    arguments = {"x-max-length": ROOM, "x-overflow": "reject-publish"}
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
        channel = connection.channel()
        channel.queue_delete(FULL_QUEUE)
        channel.queue_declare(FULL_QUEUE, durable=True, arguments=arguments)
    try:
        yield
    finally:
        with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
            connection.channel().queue_delete(FULL_QUEUE)


async def _until(condition: Callable[[], bool]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)


def _coroutine_function(answer: object, name: str) -> Callable[..., Any]:
    if not callable(answer):
        raise NotYet(f"{name} should be a function; it is {type(answer).__name__} now")
    if not inspect.iscoroutinefunction(answer):
        raise NotYet(f"{name} should be a coroutine function: begin it with async def")
    return answer


EXERCISES = (
    Exercise(
        "04.1",
        _connect,
        hints=(
            "Which line waits? What in asyncio limits how long a future is awaited?",
            "asyncio.wait_for(opened, seconds) raises TimeoutError. What is still open then?",
            "Keep the AsyncioConnection in a variable, and call its close() when you give up.",
            "except (TimeoutError, asyncio.CancelledError): connection.close(), then raise. Ask opened.done() first.",
        ),
        seconds=40.0,
    ),
    Exercise(
        "04.2",
        _publish_all,
        hints=(
            "How many publishes are under way at once in the stub?",
            "asyncio.gather runs many. What does it do at the first exception, and which argument changes that?",
            "return_exceptions=True puts each exception into the list of results, at its message's place.",
            "zip(texts, outcomes) pairs them; publish returns None when the message was confirmed.",
        ),
        seconds=20.0,
    ),
)
