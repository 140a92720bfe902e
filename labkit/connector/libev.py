"""``LibevConnection``: Pika on a bare libev loop. Pika had one until 2018; labkit has one again.

The loop is libev itself, by way of the binding that gevent ships (``gevent.libev.corecext``): no greenlets, no
hub, nothing is patched. gevent is maintained and has wheels for every Python that labkit supports; pyev, on which
Pika's own adapter was built, has had no release since 2015. Needs the extra ``gevent``; not on Windows, where
gevent's wheels hold libuv instead.

Also :func:`pin_gevent`: greenlets, and Pika's ``GeventConnection``, on libev.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils.nbio_interface import AbstractIOServices
from pika.adapters.utils.selector_ioloop_adapter import AbstractSelectorIOLoop, SelectorIOServicesAdapter

from labkit.concurrency.guard import Guard
from labkit.connector.private_pika import DecodingConnection
from labkit.errors import ConfigurationError, MissingExtra
from labkit.extras import extra
from labkit.printable import a_type

# What libev calls them (ev.h: EV_READ, EV_WRITE); an error shows as both.
READ, WRITE = 1, 2


class LibevLoop(AbstractSelectorIOLoop):  # type: ignore[misc]
    """One libev loop with the methods of Pika's ``IOLoop``.

    Owned by the thread that calls :meth:`start`; the others may call :meth:`add_callback` and :meth:`stop` only. What
    a callback raises ends :meth:`start`, which raises it, as with Pika's own loop.

    Raises:
        MissingExtra: gevent, which ships the binding, is not installed.
        ConfigurationError: this gevent has no libev (Windows).
    """

    READ = READ
    WRITE = WRITE
    ERROR = 0

    def __init__(self) -> None:
        self._loop = _corecext().loop(default=False)
        # libev's callbacks cannot raise through C: gevent hands what they raise to this object.
        self._loop.error_handler = self
        self._raised: BaseException | None = None
        self._handlers: dict[int, tuple[Any, Callable[[int, int], None]]] = {}
        self._timers: set[Any] = set()  # a timer that nothing refers to would never fire
        self._callbacks: deque[Callable[[], Any]] = deque()
        # Between close and what other threads call; a signal handler may come in the middle and call the same.
        self._lock = Guard()
        self._runner: int | None = None  # the thread inside start()
        self._stop_asked = False
        self._wake = self._loop.async_()
        self._wake.start(self._run_callbacks)
        # Python looks for a Ctrl-C only where Python code runs, and this does at every turn of the loop.
        self._turn = self._loop.check()
        self._turn.start(lambda: None)

    @property
    def backend(self) -> str:
        """What libev waits with: "epoll", "kqueue", "poll", "select"."""
        return str(self._loop.backend)

    def start(self) -> None:
        """Run until :meth:`stop`; raise what a callback raised.

        Raises:
            RuntimeError: the loop runs already, or was closed.
        """
        is_ours = False
        raised: BaseException | None = None
        try:
            with self._lock:
                self._refuse_if_running("cannot be started again")
                if self._wake is None:
                    raise RuntimeError("this libev loop was closed")
                is_ours = True
                self._runner = threading.get_ident()
            while not self._stop_asked and self._raised is None:
                self._loop.run()  # returns when nothing is left to watch, too; the wake-up watcher prevents that
        finally:
            if is_ours:
                self._runner, self._stop_asked = None, False
                raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def stop(self) -> None:
        """Make :meth:`start` return soon; before it runs, make it return at once. Any thread may call this."""
        self._stop_asked = True
        if self._runner == threading.get_ident():
            self._loop.break_()  # after this turn: no handler is called once more
        self._wake_up()

    def close(self) -> None:
        """Free the loop, after :meth:`start` has returned. Twice is harmless.

        Raises:
            RuntimeError: the loop runs: freed under libev's feet, it would crash the process.
        """
        with self._lock:
            self._refuse_if_running("cannot be closed: call stop(), and close() after start() has returned")
            if self._wake is None:
                return
            wake, self._wake = self._wake, None
        for watcher in (wake, self._turn, *(watcher for watcher, _ in self._handlers.values()), *self._timers):
            watcher.close()
        self._handlers.clear()
        self._timers.clear()
        self._callbacks.clear()
        self._loop.destroy()

    def add_callback(self, callback: Callable[[], Any]) -> None:
        """Call *callback* soon, on the loop's thread. Any thread may call this; a closed loop calls nothing any more.

        Raises:
            TypeError: *callback* cannot be called.
        """
        if not callable(callback):
            raise TypeError(f"{a_type(callback)} cannot be called; allowed: a function")
        self._callbacks.append(callback)
        self._wake_up()

    add_callback_threadsafe = add_callback  # Pika's IOLoop has both names

    def call_later(self, delay: float, callback: Callable[[], Any]) -> object:
        """Call *callback* in *delay* seconds; return what :meth:`remove_timeout` takes."""
        self._loop.update_now()  # libev counts from when it last looked at the clock
        timer = self._loop.timer(max(0.0, delay))

        def fire() -> None:
            self.remove_timeout(timer)
            callback()

        self._timers.add(timer)
        timer.start(fire)
        return timer

    def remove_timeout(self, timeout_handle: Any) -> None:
        """Forget a timer; nothing happens if it has fired."""
        if timeout_handle in self._timers:
            self._timers.discard(timeout_handle)
            timeout_handle.close()

    def add_handler(self, fd: int, handler: Callable[[int, int], None], events: int) -> None:
        """Call ``handler(fd, events)`` whenever *fd* is ready for one of *events*, in place of an earlier handler."""
        if fd in self._handlers:
            self.remove_handler(fd)
        watcher = self._loop.io(fd, events)
        self._handlers[fd] = (watcher, handler)
        watcher.start(lambda came: handler(fd, came), pass_events=True)

    def update_handler(self, fd: int, events: int) -> None:
        """Wait for other *events* on *fd*."""
        _, handler = self._handlers[fd]
        self.remove_handler(fd)  # libev forbids to change a watcher that runs
        self.add_handler(fd, handler, events)

    def remove_handler(self, fd: int) -> None:
        """Wait for *fd* no more."""
        watcher, _ = self._handlers.pop(fd)
        watcher.close()

    def handle_error(self, context: object, kind: type, error: BaseException, traceback: object) -> None:  # noqa: ARG002
        """Take what a callback raised (gevent calls this)."""
        if self._raised is None:
            self._raised = error
        self._loop.break_()

    def _refuse_if_running(self, what: str) -> None:
        if self._runner is not None:
            raise RuntimeError(f"this libev loop runs, and {what}")

    def _wake_up(self) -> None:
        with self._lock:
            if self._wake is not None:
                self._wake.send()

    def _run_callbacks(self) -> None:
        try:
            for _ in range(len(self._callbacks)):  # what they add themselves comes at the next turn
                if self._stop_asked:
                    break
                self._callbacks.popleft()()
        finally:
            if self._stop_asked:
                self._loop.break_()
            if self._callbacks:  # stopped, or one raised: the rest is kept for the next start()
                self._wake_up()


class LibevConnection(DecodingConnection, BaseConnection):  # type: ignore[misc]
    """A Pika connection on a :class:`LibevLoop`; the constructor is that of Pika's ``SelectConnection``.

    Not thread-safe: one thread runs the loop; the others may call ``connection.ioloop.add_callback`` only.

    Args:
        parameters: Where to connect.
        on_open_callback: ``callback(connection)``.
        on_open_error_callback: ``callback(connection, error)``: there will be no connection.
        on_close_callback: ``callback(connection, reason)``.
        custom_ioloop: A :class:`LibevLoop` to share; None: a new one.
        internal_connection_workflow: False only for :meth:`create_connection`.

    Raises:
        MissingExtra: gevent, which ships the binding of libev, is not installed.
    """

    def __init__(
        self,
        parameters: Any = None,
        on_open_callback: Callable[[Any], Any] | None = None,
        on_open_error_callback: Callable[[Any, BaseException], Any] | None = None,
        on_close_callback: Callable[[Any, BaseException], Any] | None = None,
        custom_ioloop: Any = None,
        internal_connection_workflow: bool = True,
    ) -> None:
        super().__init__(
            parameters,
            on_open_callback,
            on_open_error_callback,
            on_close_callback,
            _io_services(custom_ioloop),
            internal_connection_workflow=internal_connection_workflow,
        )

    @classmethod
    def create_connection(
        cls,
        connection_configs: Sequence[Any],
        on_done: Callable[[Any], Any],
        custom_ioloop: Any = None,
        workflow: Any = None,
    ) -> Any:
        """Try *connection_configs* in order; call ``on_done`` with an open connection, or with Pika's error."""
        services = _io_services(custom_ioloop)
        return cls._start_connection_workflow(
            connection_configs=connection_configs,
            connection_factory=lambda parameters: cls(
                parameters, custom_ioloop=services, internal_connection_workflow=False
            ),
            nbio=services,
            workflow=workflow,
            on_done=on_done,
        )


def pin_gevent() -> None:
    """Make gevent use libev on this thread, and say no if it is too late. Call it before anything uses gevent's hub.

    gevent chooses by itself otherwise: libev on Linux and macOS, libuv on Windows, or what GEVENT_LOOP says.

    Raises:
        MissingExtra: gevent is not installed.
        ConfigurationError: this thread's hub runs on another loop, or this gevent has no libev (Windows).
    """
    _corecext()
    gevent = extra("gevent", "gevent")
    gevent.config.loop = "libev-cext"  # no effect on a hub that has its loop already
    loop = type(gevent.get_hub().loop)
    if not loop.__module__.startswith("gevent.libev."):
        raise ConfigurationError(
            f"gevent's hub of this thread runs on {loop.__module__}; allowed: libev. Call pin_gevent() first"
        )


def _io_services(loop: Any) -> Any:
    if isinstance(loop, AbstractIOServices):
        return loop
    return SelectorIOServicesAdapter(LibevLoop() if loop is None else loop)


def _corecext() -> Any:
    extra("gevent", "gevent")
    try:
        return extra("gevent", "gevent.libev.corecext")
    except MissingExtra:
        raise ConfigurationError(
            f"this gevent has no libev on {sys.platform}; allowed: Linux and macOS, with gevent's own wheels"
        ) from None
