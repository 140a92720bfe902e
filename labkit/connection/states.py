"""The states of a connection, and the one table of what follows what. No I/O.

``labkit.connection.lifecycle`` takes every step by it, and ARCHITECTURE.md shows it as a picture.
"""

import enum
import logging

LOGGER = logging.getLogger(__name__)


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


class Trigger(enum.Enum):
    """What ends a state. Each one leads to the same state wherever it comes."""

    ATTEMPT = "an attempt begins"
    PAUSE = "the attempt failed, another follows"
    GIVE_UP = "no attempt follows"
    ABANDON = "open() was interrupted"
    ESTABLISH = "the link is open, all roles are restored"
    LOSE = "the link is lost, with recovery"
    LOSE_FOR_GOOD = "the link is lost, without recovery"
    CLOSE = "close() or abort()"
    END = "the close handshake is over, or the socket is closed"


#: What follows by itself, or as somebody closes it.
_ONWARD = {
    (State.NEW, Trigger.ATTEMPT): State.CONNECTING,
    (State.NEW, Trigger.CLOSE): State.CLOSING,
    (State.CONNECTING, Trigger.ESTABLISH): State.OPEN,
    (State.CONNECTING, Trigger.PAUSE): State.WAITING,
    (State.CONNECTING, Trigger.GIVE_UP): State.FAILED,
    (State.CONNECTING, Trigger.ABANDON): State.CLOSED,
    (State.CONNECTING, Trigger.CLOSE): State.CLOSING,
    (State.OPEN, Trigger.LOSE): State.WAITING,
    (State.OPEN, Trigger.LOSE_FOR_GOOD): State.FAILED,
    (State.OPEN, Trigger.CLOSE): State.CLOSING,
    (State.WAITING, Trigger.ATTEMPT): State.CONNECTING,
    (State.WAITING, Trigger.GIVE_UP): State.FAILED,
    (State.WAITING, Trigger.ABANDON): State.CLOSED,
    (State.WAITING, Trigger.CLOSE): State.CLOSING,
    (State.FAILED, Trigger.CLOSE): State.CLOSING,
    (State.CLOSING, Trigger.END): State.CLOSED,
}
#: What follows only after somebody has called open() again.
_AGAIN = {
    (State.FAILED, Trigger.ATTEMPT): State.CONNECTING,
    (State.CLOSED, Trigger.ATTEMPT): State.CONNECTING,
    (State.CLOSED, Trigger.CLOSE): State.CLOSING,  # before the first attempt
}
TRANSITIONS = _ONWARD | _AGAIN
_LEADS_TO = {trigger: target for (_, trigger), target in TRANSITIONS.items()}


def _reachable(state: State, *, recovers: bool) -> frozenset[State]:
    found: set[State] = set()
    ahead = [state]
    while ahead:
        now = ahead.pop()
        steps = [each for each in _ONWARD if each[0] is now and (recovers or each[1] is not Trigger.LOSE)]
        fresh = {_ONWARD[each] for each in steps} - found
        found |= fresh
        ahead += fresh
    return frozenset(found)


_REACHABLE = {(state, recovers): _reachable(state, recovers=recovers) for state in State for recovers in (True, False)}


def can_reach(state: State, wanted: State, *, recovers: bool) -> bool:
    """Whether *wanted* can come about after *state* without somebody calling open() again."""
    return wanted is state or wanted in _REACHABLE[state, recovers]


def after(state: State, trigger: Trigger) -> State:
    """Return the state to which *trigger* leads from *state*.

    A step that the table does not have is a mistake of labkit's own, and logged as an error: every test fails on one.
    It is taken nevertheless. What has happened has happened, and whoever waits for it must hear so: an exception here
    would keep a user's thread waiting, and the roles from being told, for a mistake in a table.
    """
    if (state, trigger) not in TRANSITIONS:
        LOGGER.error("a step that cannot be: %s, in the state %s", trigger.value, state.value)
    return _LEADS_TO[trigger]
