"""Follow what is recorded without keeping the recorder waiting: a timeline that tells, a painter that paints later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from labkit.events import TIMELINE_MAX, Dispatcher, Event, Timeline

LOGGER = logging.getLogger(__name__)
PAUSE: Final = 0.1  # seconds between two paintings: ten a second look live, and a storm of events floods no browser
STOPS_WITHIN: Final = 2.0  # seconds; a painting takes milliseconds


class FollowedTimeline(Timeline):
    """A Timeline that tells its *followers* of each event after it has recorded it. Thread-safe.

    A follower is told on the thread that recorded, so it must return soon: ``Painter.ask`` does.
    """

    def __init__(self, *, size: int = TIMELINE_MAX) -> None:
        super().__init__(size=size)
        self.followers = Dispatcher()

    def __call__(self, event: Event, /) -> None:
        """Record *event*, then tell the followers."""
        super().__call__(event)
        self.followers.emit(event)


class Painter:
    """Calls *paint* soon after it was asked to, on one thread of its own, however often it was asked. Thread-safe.

    Events arrive on the threads of connections. None of them may wait for a widget, and a widget is to be touched by
    one thread at a time; so they ask, and this thread paints. It starts with the first question and is a daemon.

    Attributes:
        failures: How often *paint* raised; it is logged, and asked for again the next time.
    """

    def __init__(self, paint: Callable[[], object], *, pause: float = PAUSE) -> None:
        self._paint = paint
        self._pause = pause
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.failures = 0

    def ask(self, _: object = None) -> None:
        """Have it painted soon; returns at once. Nothing happens after :meth:`stop`."""
        with self._lock:
            if self._stopped.is_set():
                return
            self._asked.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="labkit-painter", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Paint no more; the thread has ended when this returns. Twice is fine. Not to be called by *paint* itself."""
        with self._lock:
            self._stopped.set()
            self._asked.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOPS_WITHIN)

    def _run(self) -> None:
        while True:
            self._asked.wait()
            if self._stopped.is_set():
                return
            self._asked.clear()  # before painting: what happens meanwhile asks for another one
            try:
                self._paint()
            except Exception:
                self.failures += 1
                LOGGER.exception("a board could not be painted; what it shows is old")
            self._stopped.wait(self._pause)
