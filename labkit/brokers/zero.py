"""Bring a bench's broker back to zero: a lab may have left it stopped, paused, alarmed or full."""

from collections.abc import Callable

from labkit.brokers.credentials import LAB_USER
from labkit.brokers.interface import Broker
from labkit.errors import BrokerError

DEFAULT_VHOST = "/"


def reset(broker: Broker, say: Callable[[str], None]) -> None:
    """Resume, start, clear the alarm, make the default virtual host again, delete the others and the users they had.

    Raises:
        BrokerError: *broker* is one by URL: others may be using it.
    """
    if "process" not in broker.capabilities:
        raise BrokerError(f"a {broker.backend} broker may be in use by others: reset works on the bench's own broker")
    if broker.is_paused:
        broker.resume()
        say("resumed the paused broker")
    if not broker.is_running:
        broker.start()
        say("started the stopped broker")
    broker.clear_alarm()
    doomed = broker.vhosts()
    for name in doomed:
        broker.delete_vhost(name)
    broker.vhost(DEFAULT_VHOST)
    for name in broker.users():
        if name != LAB_USER:
            broker.delete_user(name)
            say(f"deleted the user {name}")
    say(f"made / again; deleted {len([name for name in doomed if name != DEFAULT_VHOST])} other virtual hosts")
