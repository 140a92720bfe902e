"""How a pool is to behave: one checked, frozen list of options for both kinds of pool. No I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from labkit.errors import ConfigurationError
from labkit.values import checked_callable, checked_number

T = TypeVar("T")
SIZE_MAX = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions(Generic[T]):
    """What :class:`labkit.ConnectionPool` documents; durations are seconds.

    Raises:
        ConfigurationError: an invalid value.
    """

    min_size: int
    max_size: int
    timeout: float
    max_waiting: int
    max_idle: float
    max_lifetime: float
    check: Callable[[T], object] | None
    configure: Callable[[T], object] | None
    reset: Callable[[T], object] | None
    leak_after: float | None

    def __post_init__(self) -> None:
        check_sizes(self.min_size, self.max_size)
        checked_number("max_waiting", self.max_waiting, SIZE_MAX, whole=True)
        for name in ("max_idle", "max_lifetime", "leak_after"):
            value = getattr(self, name)
            if not (name == "leak_after" and value is None) and checked_number(name, value) == 0:
                raise ConfigurationError(
                    f"{name}: 0 is not allowed; allowed: seconds, more than 0", field=name, value=0
                )
        for name in ("check", "configure", "reset"):
            if (function := getattr(self, name)) is not None:
                checked_callable(name, function, "a function of what the pool holds")
        checked_number("timeout", self.timeout)


def check_sizes(min_size: int, max_size: int) -> None:
    """Raise ConfigurationError for sizes that no pool can have."""
    checked_number("min_size", min_size, SIZE_MAX, whole=True)
    checked_number("max_size", max_size, SIZE_MAX, whole=True)
    if max_size < 1 or min_size > max_size:
        allowed = f"max_size 1 or more, min_size not above it ({max_size})"
        raise ConfigurationError(
            f"min_size={min_size}, max_size={max_size} is not allowed; allowed: {allowed}",
            field="max_size" if max_size < 1 else "min_size",
            value=max_size if max_size < 1 else min_size,
            allowed=allowed,
        )
