"""Calls, and casts, which wait for nothing."""

import dataclasses
from typing import Any, Self

from labkit.rpc.driver import checked_retry
from labkit.rpc.serializer import Serializer, checked_serializer
from labkit.rpc.target import Target
from labkit.rpc.transport import Transport
from labkit.values import check_type, checked_flag, checked_number, refused

RESPONSE_TIMEOUT = 60.0  # seconds; oslo.messaging's rpc_response_timeout
TARGET_FIELDS = tuple(each.name for each in dataclasses.fields(Target))


class RPCClient:
    """Calls methods of whoever serves *target*. Thread-safe: any number of threads call at once.

    Args:
        transport: The way there.
        target: Where to; see :meth:`prepare`.
        timeout: Seconds for a whole call: connecting, sending, and the answer. For a cast: until the broker has it.
        serializer: Turns arguments into what JSON can carry, and results back.
        retry: How often a message goes out again that was, perhaps, not delivered, with the same id, by which a server
            knows a copy; None or -1: as often as *timeout* allows; 0: never.
        call_monitor_timeout: Seconds within which the server is to give signs of life during a call (oslo.messaging
            gives one every half of them); None: it may be silent until *timeout*.
        at_least_once: Have the broker say if no server's queue is there (Unroutable).

    Raises:
        ConfigurationError: an invalid argument. The constructor does no I/O.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        *,
        timeout: float | None = RESPONSE_TIMEOUT,
        serializer: Serializer | None = None,
        retry: int | None = None,
        call_monitor_timeout: int | None = None,
        at_least_once: bool = False,
    ) -> None:
        check_type("transport", transport, Transport)
        check_type("target", target, Target)
        target.needed("topic")
        for name, value in (("timeout", timeout), ("call_monitor_timeout", call_monitor_timeout)):
            if value is not None and checked_number(name, value, whole=name != "timeout") == 0:
                raise refused(name, value, "seconds, above 0, or None")
        self.transport = transport
        self.target = target
        self._serializer = checked_serializer(serializer)
        self._timeout = RESPONSE_TIMEOUT if timeout is None else float(timeout)
        self._options: dict[str, Any] = {
            "retry": checked_retry(retry),
            "call_monitor_timeout": call_monitor_timeout,
            "at_least_once": checked_flag("at_least_once", at_least_once),
        }

    def __repr__(self) -> str:
        return f"RPCClient({self.target!r})"

    def prepare(self, **changes: Any) -> Self:
        """Return a client with *changes*: fields of the target (``fanout=True``, ``server="a"``), or of the client."""
        target = {name: changes.pop(name) for name in TARGET_FIELDS if name in changes}
        given = {"timeout": self._timeout, "serializer": self._serializer, **self._options, **changes}
        for name in changes:
            if name not in ("timeout", "serializer", *self._options):
                raise refused(name, changes[name], ", ".join((*TARGET_FIELDS, "timeout", "serializer", *self._options)))
        return type(self)(self.transport, self.target.replace(**target), **given)

    def call(self, ctxt: Any, method: str, /, **kwargs: Any) -> Any:
        """Return what *method* returned on one of the servers.

        Args:
            ctxt: A mapping, or an object with ``to_dict()``, that travels along; None: nothing does.
            method: Its name.
            kwargs: Its arguments.

        Raises:
            RpcTimeout: no answer in time; it may or may not have been carried out.
            Exception: what the endpoint raised: Python's own, or one of an allowed module; else RemoteError.
            NoSuchMethod, UnsupportedVersion: no endpoint fits.
            InvalidTarget: the target has fanout. Nothing was sent.
            Unroutable: *at_least_once*, and no server's queue is there.
            TransientQueuesForbidden: the broker does not permit the reply queue.
            NotConnected: the transport was closed meanwhile; it may or may not have been carried out.
            ConfigurationError: an argument cannot be sent. Nothing was.
            LabkitError: it could not be sent.
        """
        return self._send(ctxt, method, kwargs, wait_for_reply=True)

    def cast(self, ctxt: Any, method: str, /, **kwargs: Any) -> None:
        """Have *method* carried out by one server, or by all with ``fanout=True``; return when the broker has it.

        Raises:
            Unroutable, ConfigurationError, LabkitError: as :meth:`call` does.
        """
        self._send(ctxt, method, kwargs, wait_for_reply=False)

    def _send(self, ctxt: Any, method: str, kwargs: dict[str, Any], *, wait_for_reply: bool) -> Any:
        check_type("method", method, str)
        serializer = self._serializer
        message: dict[str, Any] = {
            "method": method,
            "args": {name: serializer.serialize_entity(ctxt, value) for name, value in kwargs.items()},
        }
        for name in ("namespace", "version"):
            if getattr(self.target, name) is not None:
                message[name] = getattr(self.target, name)
        result = self.transport.driver._send(
            self.target,
            serializer.serialize_context(ctxt),
            message,
            wait_for_reply,
            self._timeout,
            **self._options,
        )
        return serializer.deserialize_entity(ctxt, result) if wait_for_reply else None
