"""Run the triggers on a private broker, and say what came of each. Two minutes, most of them waiting."""

import gc
import warnings
from collections.abc import Iterator

from labkit import brokers
from labkit.brokers.discovery import Say, silent
from labkit.lab.atlas.acts import HOST, Stand
from labkit.lab.atlas.seen import Seen
from labkit.lab.atlas.triggers import TRIGGERS, Trigger


def run(trigger: Trigger, stand: Stand) -> tuple[Seen, BaseException | None]:
    """Do it; return what came of it, and the exception itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Pika's, of a socket that it lost
        try:
            trigger.act(stand)
        except Exception as error:  # noqa: BLE001 - whatever it is, is the answer
            return Seen.of(error), error
        finally:
            gc.collect()
    return Seen(), None


def on_a_broker(say: Say = silent) -> Iterator[tuple[str, Trigger, Seen]]:
    """Run all of them on a private broker; yield its version, the trigger and what came of it, one at a time.

    Raises:
        BrokerError: none could be had.
    """
    with brokers.own("local", say) as broker:
        settings = broker.vhost(HOST)
        version = short(broker.version)
        for number, trigger in enumerate(TRIGGERS.values(), 1):
            say(f"{number} of {len(TRIGGERS)}: {trigger.when}")
            seen, _ = run(trigger, Stand(broker, settings))
            yield version, trigger, seen


def short(version: str) -> str:
    """ "4.3" of "4.3.6"."""
    return ".".join(version.split(".")[:2])
