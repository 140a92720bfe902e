"""Bring a bench's broker back to zero: a lab may have left it stopped, paused, alarmed or full."""

from collections.abc import Callable

from labkit.errors import BrokerError
from labkit.lab.brokers.credentials import GUEST, LAB_USER
from labkit.lab.brokers.interface import Broker

DEFAULT_VHOST = "/"


def reset(broker: Broker, say: Callable[[str], None]) -> None:
    """Resume, start, clear the alarm, make the default virtual host anew, delete the others and the users they had.

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
    broker.grant(GUEST, DEFAULT_VHOST)
    for name in broker.users():
        if name not in {LAB_USER, GUEST}:
            broker.delete_user(name)
            say(f"deleted the user {name}")
    say(f"made / anew; deleted {len([name for name in doomed if name != DEFAULT_VHOST])} other virtual hosts")
