"""What serves: it listens, has endpoints called on threads, and answers. Start, stop and wait, in this order."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from labkit.errors import ConfigurationError, LabkitError, MessageRefused, NotConnected
from labkit.printable import a_type
from labkit.rpc.dispatcher import Dispatcher
from labkit.rpc.driver import Listener
from labkit.rpc.incoming import Incoming
from labkit.rpc.serializer import Serializer
from labkit.rpc.target import Target
from labkit.rpc.transport import Transport
from labkit.rpc.workers import Later, Workers
from labkit.values import check_type, checked_count, checked_flag, checked_items, checked_number

LOGGER = logging.getLogger(__name__)
WORKERS, WORKERS_MAX = 64, 1000  # threads; oslo.messaging's executor_thread_pool_size
START_DEADLINE, STOP_TIMEOUT, WAIT_TIMEOUT = 30.0, 5.0, 30.0  # seconds
MONITOR_LEAST = 2  # seconds; for a caller with less patience there are no signs of life
PING = "oslo_rpc_server_ping"


class MessageServer:
    """Listens, and has what comes handled on threads. The base of servers and of notification listeners.

    What comes is handed over by a consumer's thread, which waits for a free worker. What it has when this stops is not
    settled, so the broker has it again when the connection is closed. Thread-safe. It starts once.

    Args:
        transport: The way to the broker.
        workers: How many are handled at once, 1 to 1000. What they have no time for stays with the broker.
    """

    _settles_late = False  # whether what is being handled still needs its channel

    def __init__(self, transport: Transport, *, workers: int = WORKERS) -> None:
        check_type("transport", transport, Transport)
        self.transport = transport
        self._workers = Workers("labkit-rpc-worker", checked_count("workers", workers, WORKERS_MAX))
        self._listener: Listener | None = None
        self._state = "new"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._state}, {self._workers.busy} at work)"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def rejected(self) -> int:
        """How many messages were none of this protocol. They were rejected, and not put back."""
        return 0 if self._listener is None else self._listener.rejected

    @property
    def duplicates(self) -> int:
        """How many messages had come before, and were not handled again."""
        return 0 if self._listener is None else self._listener.duplicates

    def start(self, *, deadline: float = START_DEADLINE) -> Self:
        """Listen, and return self; nothing happens if it does. It goes on through lost links.

        Args:
            deadline: Seconds to connect and to declare the queues.

        Raises:
            TransientQueuesForbidden: the broker does not permit the queues; the text has the option to set.
            ConnectError, ChannelLost, DeadlineExceeded: it could not.
            NotConnected: it was stopped meanwhile.
            ConfigurationError: it was stopped; make another.
        """
        checked_number("deadline", deadline)
        if self._state == "serving":
            return self
        if self._state != "new":
            raise ConfigurationError(f"{a_type(self)} starts once; this one has stopped", field="start")
        self._state = "serving"  # what comes before this returns is handled
        try:
            self._listener = self._listen(deadline)
            if self._state != "serving":  # another thread had nothing to close yet
                raise NotConnected("it was stopped meanwhile")  # noqa: TRY301 - the clean-up is below
        except BaseException:
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()
            if self._state == "serving":
                self._state = "new"
            raise
        return self

    open = start

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """Begin no more, within *timeout* seconds; what is being handled goes on, :meth:`wait` for it. Idempotent."""
        checked_number("timeout", timeout)
        if self._state == "serving":
            self._state = "stopped"
            if self._listener is not None and not self._settles_late:
                self._listener.stop(timeout=timeout)

    def wait(self, *, timeout: float = WAIT_TIMEOUT) -> bool:
        """After :meth:`stop`: wait for what is being handled, then close the connection.

        Returns False if some of it was not done within *timeout* seconds: it goes on, and may answer.

        Raises:
            ConfigurationError: it was not stopped.
        """
        checked_number("timeout", timeout)
        if self._state == "serving":
            raise ConfigurationError("wait() comes after stop(): until then more will come", field="wait")
        is_done = self._workers.wait_idle(timeout)
        if not is_done:
            LOGGER.warning("%r: not finished within %g s", self, timeout)
        self._close_listener()
        return is_done

    def close(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """Stop, wait for what is being handled, and close the connection, within *timeout* seconds. Twice is fine."""
        ends = time.monotonic() + float(checked_number("timeout", timeout))
        try:
            self.stop(timeout=timeout / 2)
            self.wait(timeout=max(0.0, ends - time.monotonic()))
        finally:  # also after an interrupt: what has come and was not begun would stay here
            self._close_listener()

    def _close_listener(self) -> None:
        if self._state not in ("serving", "stopped"):
            return
        self._state = "closed"
        self._end()
        if self._listener is not None:
            self._listener.close()  # what was not begun goes back

    def _listen(self, deadline: float) -> Listener:
        raise NotImplementedError

    def _end(self) -> None:
        """Nothing is handled any more."""

    def _hand_over(self, job: Callable[[], object], may_begin: Callable[[], bool] = lambda: True) -> bool:
        """Have *job* done by a free worker, if it *may_begin* when there is one; False: there was none.

        On a consumer's thread, which waits for one, or on the I/O thread, which does not.
        """
        worker = self._workers.take(lambda: self._state == "serving")
        if worker is None:
            return False
        if may_begin():
            self._workers.run(worker, job)
        else:
            self._workers.give_back(worker)
        return True


class RPCServer(MessageServer):
    """Serves *target* with *endpoints*: their public methods are called as ``method(ctxt, **arguments)``.

    A request is acknowledged before its method is called: it is carried out at most once. Copies of it are known by
    their id and dropped. What a method raises goes to the caller. While a method runs, a caller that has asked for it
    gets signs of life.

    Args:
        transport: The way to the broker.
        target: What to serve: topic, server, and perhaps the exchange.
        endpoints: Objects; their attribute ``target`` says namespace and version (none, and 1.0, if there is none).
        serializer: Turns arguments into the program's own objects, and results back.
        workers: How many methods run at once, 1 to 1000.
        ping: Whether ``oslo_rpc_server_ping`` is answered with "pong".

    Raises:
        ConfigurationError: an invalid argument, or a target without topic or server. The constructor does no I/O.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        endpoints: Iterable[Any],
        *,
        serializer: Serializer | None = None,
        workers: int = WORKERS,
        ping: bool = False,
    ) -> None:
        super().__init__(transport, workers=workers)
        check_type("target", target, Target)
        target.needed("topic"), target.needed("server")
        self.target = target
        served = checked_items("endpoints", endpoints, "objects")
        self._dispatcher = Dispatcher((*served, Pong()) if checked_flag("ping", ping) else served, serializer)
        self._later = Later("labkit-rpc-signs-of-life")

    def _listen(self, deadline: float) -> Listener:
        return self.transport.driver.listen(self.target, self._arrived, deadline=deadline)

    def _end(self) -> None:
        self._later.forget()

    def _arrived(self, incoming: Incoming) -> bool:
        return self._hand_over(lambda: self._serve(incoming), incoming.acknowledge)

    def _serve(self, incoming: Incoming) -> None:
        request, is_done = incoming.request, False

        def sign_of_life() -> float | None:
            if is_done:
                return None
            with contextlib.suppress(LabkitError):  # the caller is away, or the broker
                incoming.heartbeat()
            return pause

        if request.msg_id is not None and request.monitor:
            pause = request.monitor / 2
            if request.monitor >= MONITOR_LEAST:
                self._later.call(pause, sign_of_life)
            else:
                LOGGER.warning("no signs of life for a caller that wants one every %g s", request.monitor)
        try:
            result = self._dispatcher.dispatch(request)
        except BaseException as exc:  # SystemExit too: it ends no thread of ours, and the caller gets it
            is_done = True
            LOGGER.info("%s raised %s", request.method, type(exc).__name__, exc_info=True)
            self._answer(incoming, failure=exc)
        else:
            is_done = True
            self._answer(incoming, result)

    def _answer(self, incoming: Incoming, result: Any = None, failure: BaseException | None = None) -> None:
        try:
            incoming.reply(result, failure)
        except ConfigurationError as exc:  # JSON cannot carry the result
            if failure is None:
                self._answer(incoming, failure=exc)
            else:
                LOGGER.exception("the answer to msg_id %s cannot be sent", incoming.request.msg_id)
        except LabkitError as exc:
            if isinstance(exc, MessageRefused) and not isinstance(failure, MessageRefused):  # too large for the broker
                exc.__suppress_context__ = True  # its traceback would have the failure in it that is too large
                self._answer(incoming, failure=exc)
                return
            LOGGER.error("the answer to msg_id %s was not sent: %s", incoming.request.msg_id, exc)  # noqa: TRY400


class Pong:
    """Answers a ping: the server is there, and has a worker to spare."""

    def oslo_rpc_server_ping(self, ctxt: Any) -> str:  # noqa: ARG002
        """Return "pong"."""
        return "pong"
