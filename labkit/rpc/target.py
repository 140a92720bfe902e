"""Where a message goes, or what a server listens to. No I/O."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from labkit.errors import ConfigurationError
from labkit.rpc.failures import InvalidTarget
from labkit.values import SHORT_STRING_MAX, checked_flag, checked_items, checked_name


@dataclass(frozen=True, slots=True)
class Target:
    """A destination, in oslo.messaging's words. What is None is not said.

    Attributes:
        exchange: The control exchange; None: the transport's.
        topic: What is asked for; its servers share one queue.
        namespace: Of the methods, to keep two interfaces of one topic apart.
        version: "major.minor" of the interface.
        server: One server's name.
        fanout: Whether every server of the topic gets a copy.
        legacy_namespaces: Older namespaces that an endpoint answers to, too. (None is the namespace of who says none.)

    Raises:
        ConfigurationError: an invalid value.
    """

    exchange: str | None = None
    topic: str | None = None
    namespace: str | None = None
    version: str | None = None
    server: str | None = None
    fanout: bool = False
    legacy_namespaces: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("exchange", "topic", "namespace", "server"):
            if getattr(self, name) is not None:
                checked_name(f"Target.{name}", getattr(self, name))
        checked_flag("Target.fanout", self.fanout)
        if self.topic and self.server and len(f"{self.topic}.{self.server}".encode()) > SHORT_STRING_MAX:
            allowed = f"topic and server of up to {SHORT_STRING_MAX - 1} bytes together"
            raise ConfigurationError(f"Target.server: it is too long; allowed: {allowed}", field="server")
        older = checked_items("Target.legacy_namespaces", self.legacy_namespaces, "namespaces")
        for each in older:
            if each is not None:
                checked_name("Target.legacy_namespaces", each)
        object.__setattr__(self, "legacy_namespaces", older)
        if self.version is not None:
            version_numbers(self.version)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes*."""
        return replace(self, **changes)

    @property
    def namespaces(self) -> tuple[str | None, ...]:
        """The namespaces that an endpoint with this target answers to."""
        return (self.namespace, *self.legacy_namespaces)

    @property
    def route(self) -> str:
        """The routing key: the topic, or one server's.

        Raises:
            InvalidTarget: there is no topic.
        """
        topic = self.needed("topic")
        return topic if self.server is None else f"{topic}.{self.server}"

    def needed(self, name: str) -> str:
        """Return the field *name*.

        Raises:
            InvalidTarget: it is not said.
        """
        value = getattr(self, name)
        if not value:
            raise InvalidTarget(f"Target.{name}: None is not allowed here; allowed: a name", field=name)
        return str(value)


def version_numbers(version: object) -> tuple[int, int, int]:
    """Return major, minor and revision of "M.m" or "M.m.r".

    Raises:
        ConfigurationError: it is no such text.
    """
    numbers = _numbers(version) if isinstance(version, str) else None
    if numbers is None:
        raise ConfigurationError(f"version: {version!r:.60} is not allowed; allowed: 'major.minor'", field="version")
    return numbers


@lru_cache(maxsize=256)  # the same few for every message
def _numbers(version: str) -> tuple[int, int, int] | None:
    parts = version.split(".")
    if not 1 <= len(parts) <= 3 or not all(each.isascii() and each.isdecimal() and len(each) < 10 for each in parts):
        return None
    major, minor, revision = (*map(int, parts), 0, 0)[:3]
    return major, minor, revision


def is_compatible(offered: str, asked: str) -> bool:
    """Whether *offered* can do what *asked* needs: the same major version, and nothing newer asked for."""
    there, wanted = version_numbers(offered), version_numbers(asked)
    return there[0] == wanted[0] and there[1:] >= wanted[1:]
