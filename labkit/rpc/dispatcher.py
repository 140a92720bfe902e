"""Which endpoint is called for a request: by namespace, version and method. No I/O, no threads."""

from collections.abc import Iterable
from typing import Any

from labkit.errors import ConfigurationError
from labkit.printable import a_type
from labkit.rpc.envelope import Request
from labkit.rpc.failures import NoSuchMethod, UnsupportedVersion
from labkit.rpc.serializer import Serializer, checked_serializer
from labkit.rpc.target import Target, is_compatible
from labkit.values import checked_callable, checked_items

DEFAULT_TARGET = Target(version="1.0")


class Dispatcher:
    """Calls the first endpoint that has the namespace, a compatible version and the method.

    Args:
        endpoints: Objects with public methods ``method(ctxt, **args)``; their ``target`` says namespace and version.
        serializer: Turns what came into the program's own objects, and the result back.

    Raises:
        ConfigurationError: they are not objects in a list, or the ``target`` of one is no Target.
    """

    def __init__(self, endpoints: Iterable[Any], serializer: Serializer | None = None) -> None:
        self.endpoints = checked_items("endpoints", endpoints, "objects")
        self._serializer = checked_serializer(serializer)
        for each in self.endpoints:
            if not isinstance(_target(each), Target):
                raise ConfigurationError(
                    f"endpoints: the target of {a_type(each)} is no Target; allowed: a Target, or none",
                    field="endpoints",
                    allowed="a Target",
                )

    def dispatch(self, request: Request) -> Any:
        """Return what the endpoint returned.

        Raises:
            NoSuchMethod: none of the endpoints that fit has a public method of that name.
            UnsupportedVersion: none fits: by namespace and version.
            ConfigurationError: it is a coroutine function.
            Exception: what the endpoint raised.
        """
        fits = False
        for endpoint in self.endpoints:
            target = _target(endpoint)
            if request.namespace not in target.namespaces or not is_compatible(
                target.version or "1.0", request.version
            ):
                continue
            fits = True
            method = None if request.method.startswith("_") else getattr(endpoint, request.method, None)
            if callable(method):
                checked_callable(request.method, method, "a plain method")
                return self._call(method, request)
        if fits:
            raise NoSuchMethod(request.method)
        raise UnsupportedVersion(request.version, request.method)

    def _call(self, method: Any, request: Request) -> Any:
        serializer = self._serializer
        ctxt = serializer.deserialize_context(request.context)
        args = {name: serializer.deserialize_entity(ctxt, value) for name, value in request.args.items()}
        return serializer.serialize_entity(ctxt, method(ctxt, **args))


def _target(endpoint: Any) -> Any:
    return getattr(endpoint, "target", None) or DEFAULT_TARGET
