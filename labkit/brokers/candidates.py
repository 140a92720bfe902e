"""The kinds of broker this machine may have, in the order in which they are tried. Starts none."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.brokers import engine, sources
from labkit.brokers.compose import ComposeBroker
from labkit.brokers.interface import Broker
from labkit.brokers.local import LocalBroker
from labkit.brokers.state import Request

IMAGE_VARIABLE = "LABKIT_RABBITMQ_IMAGE"
Say = Callable[[str], None]
# (bench directory, what it is to be) -> a broker, recorded and not started
Make = Callable[[Path, Request], Broker]


@dataclass(frozen=True, slots=True)
class Pins:
    """What a caller insists on; all None means the best there is."""

    rootfs: Path | None = None
    scripts: Path | None = None
    image: str | None = None
    pull: bool = True  # whether an image that is not here may be fetched

    @property
    def any(self) -> bool:
        """Whether the caller insists on something."""
        return any(each is not None for each in (self.rootfs, self.scripts, self.image))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to a broker. *prepare* raises BrokerError where it is not to be had, and says why."""

    name: str
    prepare: Callable[[Say], Make]


def candidates(kind: str, pins: Pins) -> list[Candidate]:
    """Return the ways to a broker of *kind* ("auto", "compose" or "local"), best first."""
    compose = Candidate("compose", lambda say: _compose(pins.image, say, pull=pins.pull))
    rootfs = Candidate("root directory", lambda _: _local(sources.from_rootfs(pins.rootfs or sources.default_rootfs())))
    scripts = Candidate("installed scripts", lambda _: _local(sources.from_scripts(pins.scripts)))
    if pins.any:
        pinned = [(pins.image, compose), (pins.rootfs, rootfs), (pins.scripts, scripts)]
        return [candidate for pin, candidate in pinned if pin is not None]
    return {"compose": [compose], "local": [rootfs, scripts]}.get(kind, [compose, rootfs, scripts])


def _compose(image: str | None, say: Say, *, pull: bool) -> Make:
    with engine.connected():
        engine.compose_command()
    # The compose file's own variable: who sets it means that image, here as with a bare `docker compose`.
    chosen = engine.available_image(image or os.environ.get(IMAGE_VARIABLE) or None, say, may_pull=pull)
    return lambda home, request: ComposeBroker.create(home, chosen, request)


def _local(source: sources.Source) -> Make:
    return lambda home, request: LocalBroker.create(home, source, request)
