"""The pages that the Flask extension adds: a path that cannot be one is refused by its key. No broker."""

import pytest
from flask import Flask

from labkit import ConfigurationError
from labkit.integrations.flask import RabbitMQ


def application(**config):
    app = Flask("shop")
    app.config.update(LABKIT_URL="amqp://guest:guest@127.0.0.1:1/", **config)
    return app


@pytest.mark.parametrize("key", ["LABKIT_HEALTH_PATH", "LABKIT_READY_PATH", "LABKIT_METRICS_PATH"])
@pytest.mark.parametrize("path", ["", "healthz", 5, False, b"/healthz"])
def test_a_path_that_is_none_is_refused_by_its_key_and_can_be_mended(key, path):
    app = application(**{key: path})
    with pytest.raises(ConfigurationError, match=f"^{key}: .* allowed: a path that begins with '/'") as caught:
        RabbitMQ(app)
    assert caught.value.field == key
    app.config[key] = "/mended"
    RabbitMQ(app)
    assert "/mended" in {rule.rule for rule in app.url_map.iter_rules()}


def test_two_pages_with_one_path_are_refused():
    app = application(LABKIT_READY_PATH="/status", LABKIT_HEALTH_PATH="/status")
    with pytest.raises(ConfigurationError, match=r"^LABKIT_READY_PATH: .*LABKIT_HEALTH_PATH") as caught:
        RabbitMQ(app)
    assert caught.value.field == "LABKIT_READY_PATH"


def test_without_a_path_there_is_no_page():
    app = application(LABKIT_HEALTH_PATH=None, LABKIT_READY_PATH=None, LABKIT_METRICS_PATH=None)
    RabbitMQ(app)
    assert {rule.endpoint for rule in app.url_map.iter_rules()} == {"static"}


def test_an_app_that_has_answered_a_request_is_not_half_prepared():
    app = application()
    app.test_client().get("/")
    for _ in range(2):
        with pytest.raises(AssertionError, match="setup method"):
            RabbitMQ(app)
