"""A TCP proxy between a client and its broker, in this process: it shows what they say, and it breaks the line."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import time
import weakref
from collections import deque
from types import TracebackType
from typing import Any, Final, Self

from labkit.errors import LabkitError
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import check_type, checked_flag, checked_number
from labkit.wire.conversation import Conversation
from labkit.wire.engine import LOOPBACK, MOST_ENDINGS, Engine, EngineClosedError
from labkit.wire.faults import Directions, Fault, Start, check_fault, check_seconds, check_whole
from labkit.wire.tap import POLL, Mark, Tap

CLOSE_TIMEOUT: Final = 5.0  # seconds; the thread needs milliseconds unless the machine is very busy

_keys = itertools.count(1)


class ActiveFault:
    """Faults that last as long as this ``with`` block; made by :meth:`Proxy.fault`.

    ``begin()`` and ``end()`` are the same without a block, for a button. Both are idempotent and thread-safe.
    """

    def __init__(self, proxy: Proxy, faults: tuple[Fault, ...], directions: Directions, start: Start) -> None:
        readable = proxy.is_tapped and not proxy.is_encrypted
        self._directions = check_fault(faults, directions, start, readable=readable)
        self._proxy, self._faults, self._start = proxy, faults, start
        self._key: int | None = None
        self._engine: Engine | None = None
        self._links: set[int] = set()

    @property
    def is_active(self) -> bool:
        """Whether it has begun and not ended; closing the proxy ends it."""
        return self._key is not None and self._engine is self._proxy._engine

    @property
    def links(self) -> int:
        """How many links the fault has begun on, since the last time it was put on the links."""
        return len(self._links)

    def begin(self) -> None:
        """Put the faults on every link of the proxy, and on those still to come."""
        if self.is_active:
            return
        engine = self._engine = self._proxy._running()
        key = self._key = next(_keys)
        links = self._links = set()  # another set: of the last time, one may be noted late
        try:
            engine.call(lambda: engine.arm(key, self._faults, self._directions, self._start, links.add))
            engine.settle()
        except BaseException:  # also when it took too long: it is put on all the same
            with contextlib.suppress(LabkitError):
                self.end()
            raise

    def end(self) -> None:
        """Take them away again; what they held back passes. Harmless when the proxy is closed."""
        key, self._key = self._key, None
        engine, self._engine = self._engine, None
        if key is not None and engine is not None:
            with contextlib.suppress(EngineClosedError):  # closing took the fault away
                engine.call(lambda: engine.disarm(key))

    def wait(self, timeout: float) -> bool:
        """Wait until it has begun on some link; return False if it has not within *timeout* seconds.

        Raises:
            ConfigurationError: *timeout* is not a number of seconds.
        """
        end = time.monotonic() + checked_number("timeout", timeout)
        while not self._links and time.monotonic() < end:
            time.sleep(POLL)
        return bool(self._links)

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.end()  # interrupted half way: a block that was not entered leaves no fault behind
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<fault {', '.join(map(repr, self._faults))} ({'active' if self.is_active else 'over'})>"


class Proxy:
    """Stands between clients and *upstream*, on a free port of the loopback address.

    Thread-safe: its own daemon thread moves the bytes, every method may be called from any other. TLS passes through
    untouched, but then frames cannot be read. After a fork the child's copy is closed, the parent's is not touched.

    Args:
        upstream: The broker to connect to, once for each client.
        tapped: Whether to record the frames (:meth:`tap` changes it for links opened later).
        seed: For what a fault leaves to chance, such as the jitter of ``Latency``.
    """

    def __init__(self, upstream: BrokerSettings, *, tapped: bool = True, seed: int = 0) -> None:
        self.upstream = checked_settings(upstream, "upstream")
        self._record = Tap()
        self._endings: deque[tuple[int, str]] = deque(maxlen=MOST_ENDINGS)
        self._numbers = itertools.count(1)  # of links; they go on when it opens again, as the record does
        self._tapped = checked_flag("tapped", tapped)
        check_type("seed", seed, int)
        self._seed = seed
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        _proxies.add(self)

    # -- life --------------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Listen. Calling it again does nothing; after :meth:`close` it starts afresh, on another port.

        Raises:
            OSError, RuntimeError: the system has no port, no descriptor or no thread to give; nothing is left open.
        """
        with self._lock:
            if self._engine is None:
                engine = Engine(
                    self.upstream.addresses,
                    seed=self._seed,
                    tap=lambda: self._record if self._tapped else None,
                    notes=self._record,
                    endings=self._endings,
                    numbers=self._numbers,
                )
                self._engine = engine  # before it starts: an interrupt here must leave something to close
                try:
                    engine.start()
                except BaseException:
                    engine.stop(CLOSE_TIMEOUT)
                    self._engine = None
                    raise
        return self

    def close(self) -> None:
        """End every link and the thread, within seconds. Idempotent; the record of what was said stays readable."""
        with self._lock:
            engine = self._engine
        if engine is None:
            return
        stopped = engine.stop(CLOSE_TIMEOUT)
        with self._lock:
            if self._engine is engine:
                self._engine = None
        if not stopped:
            raise LabkitError(f"the proxy's thread did not end within {CLOSE_TIMEOUT:g} s; this process is very busy")

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._engine is not None

    @property
    def is_encrypted(self) -> bool:
        """Whether the broker's settings say TLS: then frames cannot be read."""
        return self.upstream.tls is not None

    @property
    def is_tapped(self) -> bool:
        """Whether the frames of links opened from now on are recorded."""
        return self._tapped

    def settings(self, **changes: Any) -> BrokerSettings:
        """Return the broker's settings with the proxy's address in them, and *changes* made.

        Raises:
            LabkitError: the proxy is not open, so it has no address.
            ConfigurationError: *changes* name something invalid.
        """
        address: dict[str, Any] = {"host": LOOPBACK, "port": self._running().port}
        tls = self.upstream.tls
        if tls is not None and tls.server_name is None:
            # The certificate names the broker's host, not ours.
            address["tls"] = tls.replace(server_name=self.upstream.addresses[0][0])
        return self.upstream.replace(**(address | changes))

    # -- watch -------------------------------------------------------------------------------------------------

    def tap(self, on: bool = True, *, reveal: bool = False) -> Tap:
        """Record the frames of links opened from now on, or stop; return the record.

        Args:
            on: False lets bytes pass unread: faster, and faults cannot begin at a frame.
            reveal: Keep the passwords of ``Connection.StartOk``, which are masked otherwise.
        """
        self._tapped = checked_flag("on", on)
        self._record.reveal = checked_flag("reveal", reveal)
        return self._record

    def mark(self) -> Mark:
        """Remember this moment, for ``conversation().since(mark)`` and :meth:`wait_for`."""
        return self._record.mark()

    def conversation(self) -> Conversation:
        """Return the frames so far: a table as text, a sequence diagram in Jupyter."""
        return Conversation(self._record.entries(), dropped=self._record.dropped)

    def wait_for(self, frame: str, *, timeout: float, since: Mark | None = None, count: int = 1) -> None:
        """Wait until *count* frames called *frame* were seen, such as ``Basic.Publish``.

        Raises:
            DeadlineExceeded: it did not happen within *timeout* seconds.
        """
        self._record.wait_for(frame, timeout=timeout, since=since, count=count)

    @property
    def links(self) -> tuple[int, ...]:
        """The numbers of the links that are open now; the first link ever is 1."""
        engine = self._engine
        return () if engine is None else engine.call(engine.open_links)

    @property
    def endings(self) -> tuple[tuple[int, str], ...]:
        """Which links have ended, and why, oldest first: the last thousand, also after :meth:`close`."""
        engine = self._engine
        return tuple(self._endings) if engine is None else engine.call(lambda: tuple(self._endings))

    # -- break -------------------------------------------------------------------------------------------------

    def fault(
        self,
        *faults: Fault,
        direction: Directions = "both",
        after_bytes: int | None = None,
        at_frame: str | None = None,
        count: int = 1,
    ) -> ActiveFault:
        """Return faults to use in a ``with`` block; they last as long as it does. They compose, in order.

        Args:
            faults: What goes wrong, such as ``Latency(0.2)``.
            direction: ``upstream`` (to the broker), ``downstream`` (to the client) or both.
            after_bytes: Let this many bytes pass first, on each link and direction.
            at_frame: Begin just before a frame of this name; that frame does not pass unharmed.
            count: At which frame of that name.

        Raises:
            ConfigurationError: something asked for cannot be; nothing has happened yet.
        """
        return ActiveFault(self, faults, direction, Start(after_bytes=after_bytes, at_frame=at_frame, count=count))

    def cut(self, *, reset: bool = False, link: int | None = None, late: float = 0.0) -> int:
        """End the open links once, now, and return how many there were; new ones are welcome.

        When it returns it has happened: a client that looks at its socket finds it ended.

        Args:
            reset: The clients get a TCP reset instead of an end of file.
            link: Only the link of this number.
            late: Seconds for which the broker still believes in the links, as it does when a network drops them.

        Raises:
            ConfigurationError: an argument is not what it should be; nothing has happened yet.
        """
        checked_flag("reset", reset)
        check_seconds("late", late)
        if link is not None:
            check_whole("link", link, at_least=1)
        engine = self._running()
        count = engine.call(lambda: engine.cut(reset=reset, number=link, late=late))
        engine.settle()
        return count

    # -- inside ------------------------------------------------------------------------------------------------

    def _running(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise LabkitError(
                "the proxy is not open; use it in a `with` block, or open() it; "
                "in a notebook, after lab.close(): run the cells from the top again"
            )
        return engine

    def _forget(self) -> None:
        """In a forked child: the thread is not here, so neither is the proxy."""
        self._lock = threading.Lock()  # the parent may have held it at the moment of the fork
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.forget()

    def __repr__(self) -> str:
        return f"<Proxy ({'open' if self.is_open else 'closed'})>"


_proxies: weakref.WeakSet[Proxy] = weakref.WeakSet()


def _forget_all() -> None:
    for proxy in list(_proxies):
        proxy._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@atexit.register
def _close_all() -> None:
    """An exit without close() is silent: a daemon thread that is stopped in the middle of its work is not."""
    for proxy in list(_proxies):
        with contextlib.suppress(LabkitError):
            proxy.close()
