"""How a program's own objects become what JSON carries, and back. No I/O.

JSON is written as oslo.serialization does: sets and tuples become lists, dates and ids text.
"""

import datetime
import json
import uuid
from typing import Any

from labkit.errors import ConfigurationError, describe
from labkit.printable import a_type
from labkit.values import check_type

CARRIED = "text, numbers, booleans, None, dates, ids, and lists, sets and mappings of these"


class Serializer:
    """Changes nothing; subclass it, and give it to clients, servers, notifiers and listeners.

    Thread-safe if its methods are: they are called on every thread that calls, and on the workers of a server.
    """

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:  # noqa: ARG002 - for subclasses
        """Return *entity*, an argument, a result or a payload, as what JSON can carry."""
        return entity

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:  # noqa: ARG002 - for subclasses
        """Return what :meth:`serialize_entity` was given."""
        return entity

    def serialize_context(self, ctxt: Any) -> Any:
        """Return *ctxt* as a mapping, or as an object with ``to_dict()``."""
        return ctxt

    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        """Return what endpoints are given as their context."""
        return ctxt


def checked_serializer(value: Serializer | None) -> Serializer:
    """Return *value*, or the serializer that changes nothing.

    Raises:
        ConfigurationError: it is no Serializer.
    """
    if value is None:
        return Serializer()
    check_type("serializer", value, Serializer)
    return value


def to_json(value: Any) -> str:
    """Return *value* as ASCII text.

    Raises:
        ConfigurationError: JSON has no way to carry it.
    """
    try:
        return json.dumps(value, default=_plain)
    except Exception as exc:  # to_dict() is the program's, and so is a set that another thread changes
        raise ConfigurationError(
            f"it cannot be sent: {exc}; allowed: {CARRIED}", field="value", allowed=CARRIED
        ) from exc


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%f")
    if isinstance(value, datetime.date | uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    if callable(getattr(value, "to_dict", None)):
        try:
            return value.to_dict()
        except Exception as exc:
            raise TypeError(f"to_dict() of {a_type(value)} raised {describe(exc)}") from exc
    raise TypeError(f"{a_type(value)} has no JSON")
