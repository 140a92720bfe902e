"""The way from settings to one open connection, awaited: names, addresses, attempts, all under one deadline.

The rules are those of ``labkit.bringup``; waiting is ``await``, and the deadline is a cancellation.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from labkit.bringup import SHORTEST_LIMIT, Answer, Hosts, addresses, for_address, look_up, no_answer
from labkit.connect_errors import connect_error
from labkit.errors import Kind, classify, describe
from labkit.second_look import Looked, second_look
from labkit.settings import BrokerSettings
from labkit.urls import join_address

LOGGER = logging.getLogger(__name__)

OpenOne = Callable[[pika.ConnectionParameters], Awaitable[Any]]


class AsyncBringup:
    """One way from settings to what ``open_one`` opens at an address. Used once.

    ``open_one`` is cancelled when its time is over, as when :meth:`run` is, and must leave no socket behind then.
    """

    def __init__(self, settings: BrokerSettings, open_one: OpenOne) -> None:
        self._settings = settings
        self._open_one = open_one
        self._hosts = Hosts(settings)  # reads the TLS files: what is wrong with them is no connect error
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._ends = self._started + settings.connect_deadline
        self._looked = Looked()
        self._attempts = 0
        self._tried: list[str] = []

    async def run(self) -> Any:
        """Return what ``open_one`` opened; raise ConnectError, or one of its subclasses, with the cause."""
        try:
            return await self._try_again_and_again()
        except Exception as exc:
            elapsed = self._loop.time() - self._started
            raise connect_error(
                exc,
                hosts=self._tried,
                attempts=self._attempts,
                elapsed=elapsed,
                shows_certificate=self._settings.shows_certificate,
            ) from exc

    async def _try_again_and_again(self) -> Any:
        rounds = 1
        while True:
            try:
                return await self._try_every_host()
            except Exception as exc:
                pause = self._settings.retry_delay
                is_last = rounds >= self._settings.connection_attempts or pause >= self._left()
                if is_last or not classify(exc).is_retryable:
                    raise
            rounds += 1
            await asyncio.sleep(pause)

    async def _try_every_host(self) -> Any:
        hosts = self._hosts.begin_round()
        for position, parameters in enumerate(hosts):
            if position and self._left() <= 0:
                break
            try:
                return await self._attempt(parameters, self._left() / (len(hosts) - position))
            except Exception as exc:  # noqa: BLE001 - kept, and raised in the end
                self._hosts.failed(parameters, exc)
        raise self._hosts.failure

    async def _attempt(self, parameters: pika.ConnectionParameters, limit: float) -> Any:
        self._attempts += 1
        address = join_address(parameters.host, parameters.port)
        if address not in self._tried:
            self._tried.append(address)
        try:
            return await self._try_addresses(parameters, max(SHORTEST_LIMIT, limit))
        except Exception as exc:
            LOGGER.warning("attempt %d at %s failed: %s", self._attempts, address, describe(exc))
            raise

    async def _try_addresses(self, parameters: pika.ConnectionParameters, limit: float) -> Any:
        ends = self._loop.time() + limit
        found = await resolve(parameters.host, parameters.port, min(limit, parameters.socket_timeout or limit))
        for index, address in enumerate(found):
            left = (ends - self._loop.time()) / (len(found) - index)
            one = for_address(parameters, address, max(SHORTEST_LIMIT, left))
            seconds, one.stack_timeout = one.stack_timeout, None  # Pika's own timer has a bug: see Link.open
            try:
                try:
                    async with asyncio.timeout(seconds):
                        return await self._open_one(one)
                except TimeoutError as exc:
                    raise AMQPConnectorStackTimeout(f"no answer from {address} within {seconds:.1f} s") from exc
            except Exception as exc:  # noqa: BLE001 - raised below, or a clearer one
                error = await self._look_again(one, exc, ends - self._loop.time())
                if index == len(found) - 1 or classify(error).kind is Kind.REFUSED or self._loop.time() >= ends:
                    raise error from error.__cause__
        raise OSError(f"the name {parameters.host!r} has no address")

    async def _look_again(self, one: pika.ConnectionParameters, error: Exception, seconds: float) -> Exception:
        if not self._looked.wants(one, error):
            return error
        return await asyncio.to_thread(second_look, one, error, seconds)  # two seconds at most

    def _left(self) -> float:
        return self._ends - self._loop.time()


async def resolve(host: str, port: int, seconds: float) -> list[str]:
    """Return the addresses of *host*.

    Not with ``loop.getaddrinfo``: that runs on the loop's executor, and ``asyncio.run`` waits for it to end, so a
    resolver that hangs would hold up a program that has given up long before.

    Raises:
        OSError: the name does not resolve, or not within *seconds*.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def deliver(found: Answer) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_result(found))

    look_up(host, port, deliver)
    try:
        async with asyncio.timeout(seconds):
            return addresses(host, await answer)
    except TimeoutError as exc:
        raise no_answer(host, seconds) from exc
