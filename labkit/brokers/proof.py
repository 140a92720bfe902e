"""Prove that an AMQP link and a management page belong to one broker, before anything is written to it."""

import secrets
import time

import pika.exceptions

from labkit.brokers.handshake import CONNECT_ERRORS, Handshake
from labkit.brokers.management import Management
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings

# The page shows a new connection after its next statistics tick: 5 s unless set otherwise.
SHOWN_WITHIN = 15.0  # seconds
POLL = 0.2  # seconds
HANDSHAKE_TIMEOUT = 10.0  # seconds
REMEDY = "name the page of this very broker: LABKIT_BROKER=amqp://...?management=http://host:15672"


def prove(settings: BrokerSettings, api: Management) -> None:
    """Return once a connection as *settings* say was seen by *api*.

    The cluster's name comes first, for it costs nothing. It is no proof: containers are often called the same.

    Raises:
        BrokerError: they are not one broker, or one of them does not answer. Nothing was written.
    """
    page = api.get("overview") or {}
    name = f"labkit-proof-{secrets.token_hex(8)}"
    try:
        link = Handshake(settings.replace(connection_name=name, client_properties={}), HANDSHAKE_TIMEOUT)
    except CONNECT_ERRORS as error:
        raise BrokerError(f"no connection to {settings.to_url()}: {type(error).__name__} {error}".rstrip()) from error
    try:
        greeted = _text(link.server_properties.get("cluster_name"))
        if greeted != page.get("cluster_name"):
            raise BrokerError(
                f"{settings.to_url()} is cluster {greeted!r}, and the management page at {api.url} is that of "
                f"{page.get('cluster_name')!r}: nothing was changed; {REMEDY}"
            )
        end = time.monotonic() + SHOWN_WITHIN
        while name not in _shown(api):
            if time.monotonic() >= end:
                raise BrokerError(
                    f"a connection to {settings.to_url()} is not shown by the management page at {api.url} within "
                    f"{SHOWN_WITHIN:g} s, so they are not one broker: nothing was changed; {REMEDY}"
                )
            link.wait(POLL)
    except pika.exceptions.AMQPError as error:
        raise BrokerError(f"the connection to {settings.to_url()} was lost: {type(error).__name__}") from error
    finally:
        link.close()


def _shown(api: Management) -> set[str]:
    connections = api.get("connections") or []
    return {_text((each.get("client_properties") or {}).get("connection_name")) for each in connections}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
