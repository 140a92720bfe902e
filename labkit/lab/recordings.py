"""Outages that happened on a bench, as the events that one connection told: notebook 14 has them diagnosed.

They lie in ``recordings.json``, written by ``python -m tests.broker.outages``. Half of them are shown in the lesson;
its check keeps the other half. Knows no broker.
"""

import functools
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from labkit import events
from labkit.events import Event

FILE: Final = Path(__file__).with_suffix(".json")
DIAGNOSES: Final = (
    "nobody-listens", "no-answer", "silent-link", "link-cut", "closed-by-broker", "alarm", "channel-closed", "leak",
)  # fmt: skip
MODULES: Final = ("builtins", "pika", "labkit")  # where the classes of recorded errors may come from


@dataclass(frozen=True, slots=True)
class Recording:
    """One outage.

    Attributes:
        diagnosis: What went wrong first, one of :data:`DIAGNOSES`.
        hidden: Whether the lesson keeps it back.
        events: What the connection told, in order; ``at`` counts from the first.
    """

    diagnosis: str
    hidden: bool
    events: tuple[Event, ...]


def recordings() -> tuple[tuple[Event, ...], ...]:
    """Return the events of the eight outages that the lesson shows, without their diagnoses."""
    return tuple(each.events for each in all_recordings() if not each.hidden)


@functools.cache
def all_recordings() -> tuple[Recording, ...]:
    """Return every recording with its diagnosis, in the order of the file."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(Recording(each["diagnosis"], each["hidden"], from_data(each["events"])) for each in stored)


def to_data(happened: Iterable[Event]) -> list[dict[str, Any]]:
    """Return events as values that JSON can hold, without what means nothing elsewhere: names, hosts and ports."""
    happened = list(happened)
    return [
        {
            "event": type(event).__name__,
            **{
                field.name: _plain(getattr(event, field.name))
                for field in fields(event)
                if field.name not in ("connection", "source", "host", "port", "at")
            },
            "at": round(event.at - happened[0].at, 3),
        }
        for event in happened
    ]


def from_data(data: Iterable[Mapping[str, Any]]) -> tuple[Event, ...]:
    """Return the events that :func:`to_data` wrote; all of one connection."""
    told = []
    for each in data:
        values = {name: _value(value) for name, value in each.items()}
        told.append(getattr(events, values.pop("event"))(connection="ticketdesk", source=1, **values))
    return tuple(told)


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a value of an event or of an error."""
    if isinstance(value, BaseException):
        kind = type(value)
        held = {name: _plain(each) for name, each in vars(value).items() if not name.startswith("__")}
        data = {"error": f"{kind.__module__}:{kind.__qualname__}", "args": _plain(value.args), "held": held}
        return data if value.__cause__ is None else {**data, "cause": _plain(value.__cause__)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else type(value).__name__


def _value(data: Any) -> Any:
    """Return what :func:`_plain` was given; a list as a tuple."""
    if isinstance(data, list):
        return tuple(_value(each) for each in data)
    return _error(data) if isinstance(data, dict) else data


def _error(data: Mapping[str, Any]) -> BaseException:
    module, _, name = data["error"].partition(":")
    if module.partition(".")[0] not in MODULES:
        raise ValueError(f"a recorded error of the module {module!r}; allowed: {', '.join(MODULES)}")
    kind = getattr(importlib.import_module(module), name)
    args = _value(data["args"])
    error: BaseException = kind.__new__(kind, *args)  # its constructor may want more than the arguments that it keeps
    error.args = args
    vars(error).update({name: _value(each) for name, each in data["held"].items()})
    if "cause" in data:
        error.__cause__ = _error(data["cause"])
    return error
