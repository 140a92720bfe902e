"""Bring a connection up in a coroutine: waiting is ``await``, and a deadline is a cancellation."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pika
import pika.exceptions as px
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from labkit.concurrency.threads import start_thread
from labkit.connector.blocking import Answer, addresses, look_up, no_answer
from labkit.connector.login import LogIn, credentials, no_credentials
from labkit.connector.plan import AskLogin, Emitter, LookUp, Open, Plan, Probe, Step
from labkit.connector.probe import probe
from labkit.errors import ConnectError
from labkit.settings.settings import BrokerSettings

OpenOne = Callable[[pika.ConnectionParameters], Awaitable[Any]]
T = TypeVar("T")


class AsyncBringup:
    """One way from settings to what ``open_one`` opens at an address. Used once.

    ``open_one`` is cancelled when its time is over, as when :meth:`run` is, and must leave no socket behind then.

    Raises:
        ConfigurationError: a TLS file cannot be read.
    """

    def __init__(self, settings: BrokerSettings, events: Emitter, open_one: OpenOne) -> None:
        self._plan = Plan(settings, events)
        self._open_one = open_one

    async def run(self) -> Any:
        """Return what ``open_one`` opened; raise ConnectError, or one of its subclasses, with the cause."""
        plan = self._plan
        step: Step | None = plan.begin()
        while step is not None:
            try:
                result = await self._carry_out(step)
            except asyncio.CancelledError:
                with contextlib.suppress(ConnectError):  # for the events
                    plan.failed(px.ConnectionOpenAborted("cancelled"))
                raise
            except Exception as exc:  # noqa: BLE001 - the plan judges it
                step = plan.failed(exc)
            else:
                step = plan.succeeded(result)
        return plan.connection

    async def _carry_out(self, step: Step) -> Any:
        match step:
            case AskLogin(login, seconds):
                return await _log_in(login, seconds)
            case LookUp(host, port, seconds):
                return await resolve(host, port, seconds)
            case Open(parameters):
                return await self._open_in_time(parameters)
            case Probe(parameters, error, seconds):
                return await _off_the_loop(lambda deliver: _look(parameters, error, seconds, deliver))
            case _:
                return await asyncio.sleep(step.seconds)

    async def _open_in_time(self, parameters: pika.ConnectionParameters) -> Any:
        seconds, parameters.stack_timeout = parameters.stack_timeout, None  # Pika's own timer has a bug: see Link.open
        try:
            async with asyncio.timeout(seconds):
                return await self._open_one(parameters)
        except TimeoutError as exc:
            raise AMQPConnectorStackTimeout(f"no answer from {parameters.host} within {seconds:.1f} s") from exc


async def resolve(host: str, port: int, seconds: float) -> list[str]:
    """Return the addresses of *host*.

    Raises:
        OSError: the name does not resolve, or not within *seconds*.
    """
    try:
        async with asyncio.timeout(seconds):
            answer: Answer = await _off_the_loop(lambda deliver: look_up(host, port, deliver))
    except TimeoutError as exc:
        raise no_answer(host, seconds) from exc
    return addresses(host, answer)


async def _log_in(login: LogIn, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            answer = await _off_the_loop(login.ask)
    except TimeoutError as exc:
        raise no_credentials(seconds) from exc
    return credentials(answer)


def _look(
    parameters: pika.ConnectionParameters, error: Exception, seconds: float, deliver: Callable[[Exception], object]
) -> None:
    try:
        start_thread(lambda: deliver(probe(parameters, error, seconds)), "labkit-probe")
    except OSError:
        deliver(error)  # unclear it is, then


async def _off_the_loop(ask: Callable[[Callable[[T], object]], object]) -> T:
    """Return what *ask* delivers, from whatever thread.

    Not by the loop's executor (``loop.getaddrinfo``, ``asyncio.to_thread``): ``asyncio.run`` waits for that to end,
    so a resolver that hangs would hold up a program that has given up long before.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(found: T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_result(found))

    ask(deliver)
    return await answer
