"""Errors of remote procedure calls, and how an exception crosses the wire: as text, never as code.

A failure is restored as the class that it had only if its module is on the caller's list; a module that is not on the
list is never imported. Everything else becomes a RemoteError with the class's name, the text and the traceback.
"""

# ruff: noqa: N818 - the names are the field's own words, as in labkit.errors

import builtins
import importlib
import json
import logging
import traceback
from collections.abc import Collection, Mapping
from typing import Any

from labkit.errors import ConfigurationError, Kind, LabkitError, LeaseError, RemoteError
from labkit.rpc.serializer import to_json

LOGGER = logging.getLogger(__name__)
SUFFIX = "_Remote"  # of a class that was restored, and of its module
BUILTINS = ("builtins", "exceptions")  # the second is Python 2's
DISPATCHER = "oslo_messaging.rpc.dispatcher"  # where oslo.messaging has its NoSuchMethod and UnsupportedVersion


class InvalidTarget(ConfigurationError):
    """A target cannot be used like this: a call to all servers, a server without a topic."""


class NoSuchMethod(LabkitError):
    """No endpoint of the server has the method.

    Attributes:
        method: Its name.
    """

    kind = Kind.OUR_BUG

    def __init__(self, method: str) -> None:
        super().__init__(f"Endpoint does not support RPC method {method}")
        self.method = method


class UnsupportedVersion(LabkitError):
    """No endpoint of the server offers the version that was asked for, or its namespace.

    Attributes:
        version: What was asked for.
        method: The method's name; None: not known.
    """

    kind = Kind.OUR_BUG

    def __init__(self, version: str, method: str | None = None) -> None:
        tail = "" if method is None else f". Attempted method: {method}"
        super().__init__(f"Endpoint does not support RPC version {version}{tail}")
        self.version = version
        self.method = method


class InvalidRPCConnectionReuse(LeaseError):
    """A connection was used after its ``ConnectionContext`` had given it back: it may be another's by now."""


class TransientQueuesForbidden(LabkitError):
    """The broker does not permit queues that are neither durable nor exclusive, which are oslo.messaging's default.

    Set ``rabbit_quorum_queue`` and ``rabbit_transient_quorum_queue`` on both sides; or have the broker permit them
    with ``deprecated_features.permit.transient_nonexcl_queues = true``.

    Attributes:
        queue: The queue that could not be declared.
        options: The options to set.
    """

    kind = Kind.REFUSED

    def __init__(self, queue: str, options: tuple[str, ...]) -> None:
        super().__init__(
            f"the broker does not permit {queue!r}: transient queues that are not exclusive are deprecated; set "
            f"{' and '.join(f'{each}=True' for each in options)} on both sides"
        )
        self.queue = queue
        self.options = options


class BadMessage(LabkitError):
    """What was received is no message of this protocol; it is rejected, and not put back into its queue."""

    kind = Kind.OUR_BUG


def pack_failure(error: BaseException) -> str:
    """Return *error* as JSON text: class, module, text, traceback and arguments; what JSON cannot hold, as text."""
    name, module = type(error).__name__, type(error).__module__
    if isinstance(error, NoSuchMethod | UnsupportedVersion):
        module = DISPATCHER
    if name.endswith(SUFFIX) and module.endswith(SUFFIX):  # it came from somewhere else, and goes on
        name, module = name.removesuffix(SUFFIX), module.removesuffix(SUFFIX)
    try:
        kwargs = getattr(error, "kwargs", {})
    except Exception:  # noqa: BLE001 - the class is the user's
        kwargs = {}
    facts = {
        "class": name,
        "module": module,
        "message": _text_of(error),
        "tb": traceback.format_exception(error),
        "args": error.args,
        "kwargs": kwargs if isinstance(kwargs, Mapping) else {},
    }
    try:
        return to_json(facts)
    except ConfigurationError:
        return to_json({**facts, "args": [_text_of(each) for each in error.args], "kwargs": {}})


def unpack_failure(text: str, allowed: Collection[str] = ()) -> Exception:
    """Return the exception that :func:`pack_failure`, or oslo.messaging, has written.

    Args:
        text: The JSON text.
        allowed: Modules whose exceptions are restored, beside Python's own.

    Raises:
        BadMessage: it is no such text.
    """
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError, TypeError) as exc:
        raise BadMessage(f"a failure that is not JSON: {exc}") from exc
    if not isinstance(facts, dict) or not isinstance(facts.get("class"), str):
        raise BadMessage("a failure that names no class")
    name, module = facts["class"], facts.get("module")
    message, lines = str(facts.get("message", "")), facts.get("tb")
    trace = [str(each) for each in lines] if isinstance(lines, list) else []
    if module == DISPATCHER and name in ("NoSuchMethod", "UnsupportedVersion"):
        return _well_known(name, facts, message)
    if module in BUILTINS or module in allowed:
        try:
            return _restored(
                builtins if module in BUILTINS else importlib.import_module(str(module)), name, facts, trace
            )
        except Exception as exc:  # noqa: BLE001 - the class is another's code
            LOGGER.warning("cannot restore the failure %s.%s: %s", module, name, exc)
    return RemoteError(name, message, traceback="".join(trace))


def _well_known(name: str, facts: dict[str, Any], message: str) -> Exception:
    error: LabkitError
    if name == "NoSuchMethod":
        error = NoSuchMethod(message.removeprefix("Endpoint does not support RPC method "))
    else:
        version, _, method = message.removeprefix("Endpoint does not support RPC version ").partition(
            ". Attempted method: "
        )
        error = UnsupportedVersion(version, method or None)
    del facts
    return error


def _restored(module: Any, name: str, facts: dict[str, Any], trace: list[str]) -> Exception:
    found = getattr(module, name)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise TypeError(f"{name} is no exception")
    error: Exception = found(*facts.get("args", ()), **facts.get("kwargs", {}))
    text = f"{facts.get('message', '')}\n" + "\n".join(trace)
    if module is builtins:  # whose classes cannot be changed
        error.args = (text, *error.args[1:])
        return error
    remote = type(f"{name}{SUFFIX}", (found,), {"__str__": lambda _: text, "__module__": f"{module.__name__}{SUFFIX}"})
    error.__class__ = remote
    return error


def _text_of(what: object) -> str:
    try:
        return str(what)
    except Exception as exc:  # noqa: BLE001 - its __str__ is the user's
        return f"<{type(what).__name__}, whose text cannot be made: {type(exc).__name__}>"
