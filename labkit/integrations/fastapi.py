"""RabbitMQ for a FastAPI application: await the broker's confirm, or say 503. The event loop never waits for a broker.

The twin of :mod:`labkit.integrations.flask`, for coroutines. The :class:`labkit.ConnectionManager` is the same, and its
I/O thread: an event loop that is busy costs no heartbeat.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from labkit.extras import needs

with needs("fastapi"):
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

from labkit.connection.states import State
from labkit.errors import ConfigurationError, DeadlineExceeded, LabkitError, OutcomeUnknown, describe
from labkit.integrations.unavailable import why_unavailable
from labkit.manager import ConnectionManager
from labkit.messaging.confirmations import Confirmation
from labkit.settings.settings import BrokerSettings
from labkit.topology import Message
from labkit.values import check_type, checked_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pika

LOGGER = logging.getLogger(__name__)
READY_TIMEOUT = 1.0  # seconds that /readyz takes at most
LOOK = 0.02  # seconds between two looks whether a lost link is back
UNDER_WAY = (State.CONNECTING, State.OPEN, State.WAITING)


class RabbitMQ:
    """Publishes for FastAPI applications; ``await rabbitmq.publish(...)`` in a path operation.

    ::

        rabbitmq = RabbitMQ("amqp://...")
        app = FastAPI(lifespan=rabbitmq.lifespan)
        rabbitmq.init_app(app)

    What :meth:`init_app` adds: an error that means "later" (a lost, slow or blocked broker) is 503 with Retry-After,
    every other one 500 as usual; ``/healthz`` answers 200 while the process serves, ``/readyz`` 200 if a message could
    be published now, else 503.

    The constructor does no I/O; a connection is made when a request first needs it, one a process. For the coroutines
    of one event loop.

    Args:
        url_or_settings: Where the broker is.
        deadline: Seconds for one :meth:`publish`, its confirm included.
        retry_after: Whole seconds that a 503 tells the client to wait.

    Raises:
        ConfigurationError: an invalid argument.
    """

    def __init__(self, url_or_settings: str | BrokerSettings, *, deadline: float = 5.0, retry_after: int = 5) -> None:
        if isinstance(url_or_settings, str):
            url_or_settings = BrokerSettings.from_url(url_or_settings)
        check_type("url_or_settings", url_or_settings, BrokerSettings)
        self._deadline = float(checked_number("deadline", deadline))
        self._retry_after = checked_number("retry_after", retry_after, whole=True)
        self._manager = ConnectionManager(url_or_settings)
        self._opening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return "RabbitMQ()"

    @property
    def manager(self) -> ConnectionManager:
        """What publishes. Its other calls wait: from a path operation that is a plain ``def``, or ``to_thread``."""
        return self._manager

    def init_app(self, app: FastAPI) -> None:
        """Have *app* answer 503 where this means "later", and serve ``/healthz`` and ``/readyz``. No I/O.

        Raises:
            ConfigurationError: *app* is no FastAPI application.
        """
        if not isinstance(app, FastAPI):
            raise ConfigurationError("app: not a FastAPI application", field="app", allowed="a FastAPI application")
        app.add_exception_handler(LabkitError, self._answer_error)
        app.add_api_route("/healthz", _health, include_in_schema=False)
        app.add_api_route("/readyz", self._ready, include_in_schema=False, response_model=None)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG002 - the protocol's
        """Close the connection when the application ends, whatever ends it; its start waits for no broker.

        An application may start again after that, in the next test for example; then this publishes again.
        """
        self._manager._begin_again()
        try:
            yield
        finally:
            await asyncio.to_thread(self._manager.close)

    async def publish(
        self,
        *,
        routing_key: str,
        body: bytes | str | Message,
        exchange: str = "",
        properties: "Mapping[str, Any] | pika.BasicProperties | None" = None,
    ) -> Confirmation:
        """Publish, and return when the broker has confirmed. Cancelled, it leaves nobody waiting; the message may go.

        Args:
            routing_key: Up to 255 bytes; on the default exchange, the queue's name.
            body: Text, bytes, or a Message with its own properties.
            exchange: Its name; "": the default exchange.
            properties: Names and values, or Pika's object.

        Raises:
            ConnectError, NotConnected, DeadlineExceeded, PublishRejected: it was not delivered.
            OutcomeUnknown: it was sent and not confirmed by the deadline: it may or may not have been delivered.
            Unroutable: no queue would have received it.
            ConfigurationError: it cannot be sent. Nothing was.
        """
        is_whole = isinstance(body, Message) and properties is None
        message = body if is_whole else Message.with_properties(body, properties)  # type: ignore[arg-type]
        ends = time.monotonic() + self._deadline
        while True:
            await self._begin_opening(ends)
            confirmation = self._manager.publisher.try_publish(
                message, exchange=exchange, routing_key=routing_key, deadline=max(0.0, ends - time.monotonic())
            )
            if confirmation is not None:
                break
            await self._pause(ends)
        try:
            await confirmation
        except DeadlineExceeded as exc:
            if confirmation.done:
                raise
            raise OutcomeUnknown(str(exc), message_id=confirmation.message_id) from exc  # our own I/O thread is late
        return confirmation

    async def _begin_opening(self, ends: float) -> None:
        """Return when there is a connection, or one is being made; one thread makes it for all requests."""
        publisher = self._manager.publisher
        if not publisher.is_closed and publisher.connection.state in UNDER_WAY:
            return
        opening = self._opening
        if opening is None or opening.done() or opening.get_loop() is not asyncio.get_running_loop():
            connect = asyncio.to_thread(self._manager.ensure_connection, deadline=self._deadline)
            opening = self._opening = asyncio.create_task(connect)
            opening.add_done_callback(lambda task: task.cancelled() or task.exception())  # somebody has seen it
        await asyncio.wait({opening}, timeout=max(0.0, ends - time.monotonic()))
        if not opening.done():
            raise self._too_late()
        opening.result()

    async def _pause(self, ends: float) -> None:
        left = ends - time.monotonic()
        if left <= 0:
            raise self._too_late()
        await asyncio.sleep(min(LOOK, left))

    def _too_late(self) -> DeadlineExceeded:
        state = self._manager.publisher.connection.state.value
        return DeadlineExceeded(f"not sent within its deadline: the connection is {state}")

    async def _ready(self) -> JSONResponse:
        ends = time.monotonic() + min(READY_TIMEOUT, self._deadline)
        try:
            connection = self._manager.publisher.connection
            await self._begin_opening(ends)
            while not connection.is_open:
                await self._pause(ends)
        except LabkitError as exc:
            LOGGER.warning("not ready: %s", describe(exc))
            return self._not_now(status="not ready", reason="no connection to the broker")
        if connection.is_blocked:
            return self._not_now(status="not ready", reason="the broker has an alarm and takes no messages")
        return JSONResponse({"status": "ready"})

    def _answer_error(self, request: Request, error: Exception) -> JSONResponse:
        text = why_unavailable(error) if isinstance(error, LabkitError) else None
        if text is None:
            raise error  # a 500, as any other error of a path operation
        LOGGER.warning("%s %s answered 503: %s", request.method, request.url.path, describe(error))
        return self._not_now(detail=text)

    def _not_now(self, **facts: str) -> JSONResponse:
        return JSONResponse(facts, status_code=503, headers={"Retry-After": str(self._retry_after)})


async def _health() -> dict[str, str]:
    return {"status": "alive"}
