"""rabbit:// URLs mean what they mean to oslo.messaging, or are refused by name."""

import pytest

from labkit import BrokerSettings, ConfigurationError
from labkit.rpc import RabbitOptions, Transport
from labkit.rpc.addresses import read_rabbit_url


def read(url):
    return read_rabbit_url(url, RabbitOptions())


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("rabbit://", BrokerSettings()),
        ("rabbit:///", BrokerSettings()),
        ("rabbit://a:b@h:5673/v", BrokerSettings(host="h", port=5673, username="a", password="b", virtual_host="v")),
        ("rabbit://h//", BrokerSettings(host="h")),
        ("rabbit://h//v", BrokerSettings(host="h", virtual_host="/v")),
        ("rabbit://h/%2Fv/w", BrokerSettings(host="h", virtual_host="/v/w")),
        ("RABBIT://u:p%40%2F@h", BrokerSettings(host="h", username="u", password="p@/")),
        ("rabbit://u:p@a:1,u:p@b:2", BrokerSettings(hosts=("a:1", "b:2"), username="u", password="p")),
        ("rabbit://u:p@a:1,[::1]:2", BrokerSettings(hosts=("a:1", "[::1]:2"), username="u", password="p")),
    ],
)
def test_a_url_becomes_settings(url, settings):
    found, options = read(url)
    assert found.addresses == settings.addresses
    assert found.replace(host="x", port=None) == settings.replace(host="x", port=None)
    assert options == RabbitOptions()


def test_options_in_the_query_win():
    _, options = read_rabbit_url("rabbit://h/?heartbeat_timeout_threshold=9", RabbitOptions(amqp_auto_delete=True))
    assert options == RabbitOptions(amqp_auto_delete=True, heartbeat_timeout_threshold=9)


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("rabbit://u:secret@a,u:other@b/", "hosts"),
        ("rabbit://u:secret@a,v:secret@b/", "hosts"),
        ("rabbit://u@a/", "password"),
        ("rabbit://a:99999/", "host"),
        ("rabbit://a/?rabbit_quorom_queue=1", "rabbit_quorom_queue"),
        ("rabbit://a/?rabbit_quorum_queue=1&rabbit_quorum_queue=0", "url"),
        ("rabbit://a/?ssl=maybe", "ssl"),
        ("rabbit://u:secret/@a/", "url"),
        ("rabbit://u:sec%zz@a/", "url"),
        ("rabbit://u:p@a/x#secret", "url"),
        ("amqp://a/", "url"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_no_secret_is_repeated(url, field):
    with pytest.raises(ConfigurationError) as caught:
        read(url)
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_a_transport_takes_settings_and_three_kinds_of_urls_and_connects_to_nothing():
    for given in ("rabbit://nowhere.invalid/", "amqp://nowhere.invalid/", BrokerSettings(host="nowhere.invalid")):
        with Transport(given) as transport:
            assert repr(transport) == "Transport(RabbitDriver)"
    with Transport("memory://x") as transport:
        assert repr(transport) == "Transport(MemoryDriver)"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"url_or_settings": "http://x"}, "url_or_settings"),
        ({"url_or_settings": "localhost"}, "url_or_settings"),
        ({"url_or_settings": 7}, "url_or_settings"),
        ({"options": {}}, "options"),
        ({"control_exchange": ""}, "control_exchange"),
        ({"allowed_remote_exmods": "builtins"}, "allowed_remote_exmods"),
        ({"allowed_remote_exmods": [7]}, "allowed_remote_exmods"),
    ],
)
def test_a_transport_refuses_what_it_cannot_use(given, field):
    with pytest.raises(ConfigurationError) as caught:
        Transport(**given)
    assert caught.value.field == field
