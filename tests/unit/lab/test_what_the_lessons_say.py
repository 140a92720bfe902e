"""What a lesson says of Pika, of the bench and of labkit, where no cell shows it, is true of what is installed."""

import inspect
import json
from pathlib import Path

import pika
from pika.adapters.select_connection import SelectConnection

from labkit import Message
from labkit.brokers import encryption

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


def prose(number: str) -> str:
    cells = json.loads(next(NOTEBOOKS.glob(f"{number}-*.ipynb")).read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_a_message_is_transient_unless_somebody_says_persistent_and_labkit_says_it():
    assert "**transient**, which is what Pika sends if you do not say" in prose("00")
    assert pika.BasicProperties().delivery_mode is None
    assert Message(b"order").to_pika().delivery_mode == pika.DeliveryMode.Persistent.value


def test_a_login_by_certificate_needs_a_plugin_and_the_common_name_has_to_be_asked_for():
    assert "`rabbitmq_auth_mechanism_ssl`, and `ssl_cert_login_from = common_name`" in prose("10")
    assert "rabbitmq_auth_mechanism_ssl" in encryption.PLUGINS
    text = encryption.configuration("127.0.0.1:5671", "/tls", demand_certificate=False)
    assert "ssl_cert_login_from = common_name\n" in text


def test_a_constructor_takes_one_host_and_create_connection_walks_a_list():
    assert "`SelectConnection.create_connection` walks a list of them" in prose("05")
    assert "connection_configs" in inspect.signature(SelectConnection.create_connection).parameters
    assert "parameters" in inspect.signature(SelectConnection).parameters
