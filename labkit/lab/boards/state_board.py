"""The state timeline as it grows: the state behind the live board. It knows no widget; the view follows it."""

from __future__ import annotations

import threading

import traitlets

from labkit.lab.boards.following import FollowedTimeline, Painter
from labkit.lab.boards.state_timeline import StateTimeline


class StateBoard(traitlets.HasTraits):
    """What a timeline has recorded since :meth:`start_afresh`, brought up to date on a painter's thread. Thread-safe.

    Its attributes change together, and only while no other thread changes them: who observes them needs no lock.

    Attributes:
        state: where the newest connection is, flag included: ``OPEN blocked``; empty before the first event.
        picture: :meth:`StateTimeline.svg`.
        said: one line: the state, and how many events led there.
    """

    state = traitlets.Unicode("")
    picture = traitlets.Unicode("")
    said = traitlets.Unicode("")

    def __init__(self, timeline: FollowedTimeline) -> None:
        super().__init__()
        self.timeline = timeline
        # Re-entrant: an observer may read the board.
        self._lock = threading.RLock()
        self._begins = 0  # a mark of the timeline
        self._painter = Painter(self.refresh)
        self.refresh()
        timeline.followers.add(self._painter.ask)

    def now(self) -> StateTimeline:
        """Return the timeline as it is at this moment, whether it has been painted or not."""
        with self._lock:
            begins = self._begins
        recorded = self.timeline.events
        dropped = self.timeline.mark() - len(recorded)  # read after the events: it can only be too large
        return StateTimeline(recorded, skip=max(0, begins - dropped))

    def refresh(self) -> None:
        """Show what is recorded now. The painter calls it after each event; nobody else has to."""
        with self._lock:
            shown = self.now()
            with self.hold_trait_notifications():
                self.state, self.picture, self.said = shown.state, shown.svg(), _say(shown)

    def start_afresh(self) -> None:
        """Leave out what has happened so far; the next event is the first row."""
        with self._lock:
            self._begins = self.timeline.mark()
            self.refresh()

    def stop(self) -> None:
        """Follow no more; what is shown stays. Ends in bounded time; twice is fine."""
        self.timeline.followers.remove(self._painter.ask)
        self._painter.stop()

    def __repr__(self) -> str:
        return f"StateBoard(state={self.now().state!r})"


def _say(shown: StateTimeline) -> str:
    count = len(shown.steps)
    if not count:
        return "Nothing happened yet."
    return f"Now: {shown.state or 'unknown'} ({count} event{'' if count == 1 else 's'})."
