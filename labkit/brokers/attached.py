"""The broker that a bench directory records: get hold of it, or throw it away."""

from pathlib import Path

from labkit.brokers.compose import ComposeBroker
from labkit.brokers.interface import Broker
from labkit.brokers.local import LocalBroker
from labkit.brokers.state import Record, StateFile
from labkit.errors import BrokerError


def discard(home: str | Path) -> bool:
    """End whatever *home* records, in any state, and return whether there was anything."""
    place = Path(home)
    state = StateFile(place)
    with state.lock():
        record = state.read()
        if record is None:
            found = end_unrecorded(place)
            state.remove()
            return found
        attach(place, record).throw_away()
        return True


def attach(home: Path, record: Record) -> Broker:
    """Return the broker that *record* of *home* tells of, running or not."""
    for backend in (LocalBroker, ComposeBroker):
        if record.backend == backend.backend:
            return backend(home)
    raise BrokerError(f"{StateFile(home).path} names a backend {record.backend!r} that this labkit does not have")


def end_unrecorded(home: Path) -> bool:
    """End what runs in *home* without a state file that tells of it, and return whether there was anything."""
    found = [backend.end_unrecorded(home) for backend in (LocalBroker, ComposeBroker)]
    return any(found)
