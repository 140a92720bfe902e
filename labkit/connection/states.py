"""The states of a connection, and which of them can follow which. No I/O."""

import enum


class State(enum.Enum):
    """Where a connection is. ``blocked`` is no state but a flag: it is open, and may not publish."""

    NEW = "new"
    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    FAILED = "failed"
    CLOSING = "closing"
    CLOSED = "closed"

    def __repr__(self) -> str:
        return f"State.{self.name}"


_END = frozenset({State.CLOSING, State.CLOSED})
_ALIVE = frozenset({State.CONNECTING, State.WAITING, State.OPEN, State.FAILED, *_END})
_RECOVERING = {
    State.NEW: _ALIVE,
    State.CONNECTING: _ALIVE,
    State.WAITING: _ALIVE,
    State.OPEN: _ALIVE,
    State.FAILED: _END,
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset[State](),
}
_PLAIN = {**_RECOVERING, State.OPEN: frozenset({State.FAILED, *_END})}


def can_reach(state: State, wanted: State, *, recovers: bool) -> bool:
    """Whether *wanted* can come about after *state* without somebody calling open() again."""
    reachable = _RECOVERING if recovers else _PLAIN
    return wanted is state or wanted in reachable[state]
