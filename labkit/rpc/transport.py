"""What clients and servers share: the way to the broker. The URL chooses the driver."""

import dataclasses
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from labkit.errors import ConfigurationError
from labkit.rpc.addresses import read_rabbit_url, scheme_of
from labkit.rpc.driver import Driver
from labkit.rpc.memory import MemoryDriver
from labkit.rpc.options import RabbitOptions
from labkit.rpc.rabbit import RabbitDriver
from labkit.settings.settings import BrokerSettings
from labkit.values import check_type, checked_items, checked_name, checked_number

CLOSE_TIMEOUT = 5.0  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """What a URL or settings lead to."""

    settings: BrokerSettings | None  # None: no broker
    options: RabbitOptions
    world: str = ""


class Transport:
    """The way to the broker, for any number of clients, servers, notifiers and listeners. Thread-safe.

    It connects when it is first used. A pool of connections sends; each server and listener, and the answers to all
    calls together, have a connection of their own, which recovers.

    Args:
        url_or_settings: ``rabbit://`` as oslo.messaging writes it (several hosts, equal logins, options), ``amqp://``
            and ``amqps://`` as labkit does, BrokerSettings; or ``memory://name``, which needs no broker.
        options: What oslo.messaging's configuration says of its rabbit driver; those in a URL are laid over them.
        control_exchange: The exchange of targets that name none.
        allowed_remote_exmods: Modules whose exceptions are raised as what they are when an endpoint has raised one,
            beside Python's own. Any other becomes RemoteError, and its module is not imported.

    Raises:
        ConfigurationError: an invalid argument. The constructor does no I/O.
    """

    def __init__(
        self,
        url_or_settings: str | BrokerSettings = "rabbit://",
        *,
        options: RabbitOptions | None = None,
        control_exchange: str = "openstack",
        allowed_remote_exmods: Iterable[str] = (),
    ) -> None:
        if options is not None:
            check_type("options", options, RabbitOptions)
        checked_name("control_exchange", control_exchange)
        route = _route(url_or_settings, options or RabbitOptions())
        given: dict[str, Any] = {
            "options": route.options,
            "default_exchange": control_exchange,
            "allowed_remote_exmods": _module_names(allowed_remote_exmods),
        }
        self.options = route.options
        self.driver: Driver = (
            MemoryDriver(route.world, **given) if route.settings is None else RabbitDriver(route.settings, **given)
        )

    def __repr__(self) -> str:
        return f"Transport({type(self.driver).__name__})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def open(self) -> Self:
        """Return self: it connects when it is first used."""
        return self

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close its connections, within *timeout* seconds each; servers and listeners close theirs. Twice is fine."""
        self.driver.cleanup(float(checked_number("timeout", timeout)))


def _route(given: object, options: RabbitOptions) -> Route:
    if isinstance(given, BrokerSettings):
        return Route(given, options)
    allowed = "a URL (rabbit://, amqp://, amqps://, memory://), or BrokerSettings"
    scheme = scheme_of(given) if isinstance(given, str) else ""
    if isinstance(given, str):
        if scheme == "memory":
            return Route(None, options, given.strip().partition("://")[2].strip("/"))
        if scheme == "rabbit":
            return Route(*read_rabbit_url(given, options))
        if scheme in ("amqp", "amqps"):
            return Route(BrokerSettings.from_url(given), options)
    problem = f"the scheme {scheme!r:.20}" if scheme else f"this {type(given).__name__}"
    raise ConfigurationError(
        f"url_or_settings: {problem} is not allowed; allowed: {allowed}", field="url_or_settings", allowed=allowed
    )


def _module_names(modules: object) -> tuple[str, ...]:
    return tuple(
        checked_name("allowed_remote_exmods", each)
        for each in checked_items("allowed_remote_exmods", modules, "names of modules")
    )
