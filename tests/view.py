"""What the broker's management API says, for tests that read a client's settings back."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from labkit.brokers import Broker
from labkit.brokers.interface import CLOSE_ANSWERED

COLUMNS = (
    "name",
    "user",
    "vhost",
    "state",
    "timeout",
    "channel_max",
    "frame_max",
    "channels",
    "ssl",
    "client_properties",
)

CONSUMER = ("prefetch_count", "ack_required", "arguments")


class View:
    """The management API of a broker, waiting where its statistics lag."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        base = broker.settings()
        self.username = base.username
        self._api = httpx.Client(
            base_url=f"{broker.management_url}/api/",
            auth=(base.username, base.password.get_secret_value()),
            timeout=30,
            trust_env=False,
        )

    def close(self) -> None:
        self._api.close()

    def put(self, path: str, **body: object) -> None:
        self._api.put(path, json=body).raise_for_status()

    def post(self, path: str, **body: object) -> Any:
        return self._api.post(path, json=body).raise_for_status().json()

    def delete(self, path: str) -> None:
        self._api.delete(path).raise_for_status()

    def get(self, path: str) -> Any:
        answer = self._api.get(path)
        if answer.is_server_error:  # something in the list has gone while it was made
            answer = self._api.get(path)
        return answer.raise_for_status().json()

    def connections(self, virtual_host: str) -> list[dict[str, Any]]:
        """The open ones. Behind a container's port RabbitMQ may list one that it has closed for half a minute more."""
        return [each for each in self._listed(virtual_host) if each.get("state") != CLOSE_ANSWERED]

    def _listed(self, virtual_host: str) -> list[dict[str, Any]]:
        if "process" not in self._broker.capabilities:
            return [each for each in self.get("connections") if each.get("vhost") == virtual_host]
        # rabbitmqctl shows a connection at once; the management API after a tick of its statistics.
        listed = json.loads(self._broker.ctl("list_connections", *COLUMNS, "--formatter", "json") or "[]")
        return [_as_the_api_shows(each) for each in listed if each["vhost"] == virtual_host]

    def connection(self, virtual_host: str, timeout: float = 15.0) -> dict[str, Any]:
        """The one connection in that virtual host, once the statistics show it whole."""
        whole = until(
            lambda: [each for each in self.connections(virtual_host) if each.get("client_properties")], timeout
        )
        return whole[0]

    def consumers(self, virtual_host: str) -> list[dict[str, Any]]:
        """The queue, the prefetch, the way of acknowledging and the arguments of each consumer there."""
        if "process" not in self._broker.capabilities:
            listed = self.get(f"consumers/{virtual_host}")
            return [{**{key: each[key] for key in CONSUMER}, "queue_name": each["queue"]["name"]} for each in listed]
        # As above: the management API shows a consumer after a tick.
        columns = ("queue_name", *CONSUMER, "--formatter", "json")
        return json.loads(self._broker.ctl("list_consumers", "-p", virtual_host, *columns) or "[]")

    def close_connections(self, virtual_host: str, reason: str = "asked for by the test") -> None:
        assert self._broker.close_connections(reason, virtual_host)


def _as_the_api_shows(listed: dict[str, Any]) -> dict[str, Any]:
    # rabbitmqctl shows an AMQP table as [name, type, value] rows.
    properties = {name: value for name, _, value in listed["client_properties"]}
    if "capabilities" in properties:
        properties["capabilities"] = {name: value for name, _, value in properties["capabilities"]}
    return {**listed, "client_properties": properties, "user_provided_name": properties.get("connection_name")}


def until(question: Callable[[], Any], timeout: float = 15.0) -> Any:
    """Ask until the answer is true; return it."""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        answer = question()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not true within {timeout} s")
