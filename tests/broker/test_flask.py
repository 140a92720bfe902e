"""A Flask application publishes through lost links, and says 503 where it cannot: never 500, never a hang."""

import contextlib
import re
import time

import httpx
import pytest
from flask import Flask, request

from labkit import ConfigurationError, Queue, brokers
from labkit.brokers.home import project
from labkit.integrations.flask import RabbitMQ
from labkit.lab.interrupting import StopAfter
from labkit.wire import Proxy, Refuse, Stall
from tests.broker.connections import SLACK, channels, descriptors, nothing_left_behind, own_virtual_host
from tests.broker.flask_program import QUEUE, create_app, rabbitmq
from tests.broker.publishing import drained
from tests.broker.web import Orders, answers, declared, exported, served, server_process
from tests.view import until

pytestmark = pytest.mark.broker

DEADLINE = 3.0  # seconds, of the program


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def url(settings):
    return declared(settings)


@contextlib.contextmanager
def application(url):
    """An application whose connections end with the block: a test that fails leaves none to the next."""
    app = create_app(url)
    try:
        yield app
    finally:
        with app.app_context():
            rabbitmq.close()


@pytest.fixture
def app(url):
    with application(url) as app:
        yield app


@pytest.fixture
def line(settings, url):
    """An application behind a proxy, and the proxy."""
    with Proxy(settings) as proxy, application(proxy.settings(heartbeat=2).to_url(mask=False)) as app:
        yield app, proxy


def bodies(settings):
    return [body.decode() for _, body in drained(settings, QUEUE, silence=0.5)]


def test_a_request_that_published_is_answered_2xx_and_the_message_is_there(app, settings):
    answer = app.test_client().post("/orders", data="one")
    assert (answer.status_code, bool(answer.json["message_id"])) == (202, True)
    assert bodies(settings) == ["one"]


def test_readmes_application_runs_as_it_is_written(url, settings, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (project() / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("LABKIT_URL", url)
    names = {"__name__": "shop"}
    exec(compile(blocks[2], "README.md", "exec"), names)
    app = names["create_app"]()
    assert app.test_client().post("/orders", data="as written").status_code == 202
    with app.app_context():
        names["rabbitmq"].close()
    assert bodies(settings) == ["as written"]


def test_eight_clients_of_a_threaded_server_meet_no_5xx(app, settings):
    with served(app) as address:
        orders = Orders(address)
        orders.post(clients=8, each=40)
    assert (dict(orders.statuses), orders.broken) == ({202: 320}, [])
    assert sorted(bodies(settings)) == sorted(orders.accepted)


def test_a_request_after_a_channel_level_error_succeeds(app):
    client = app.test_client()
    for _ in range(3):
        assert client.get("/waiting").json == {"messages": 0}
        assert client.get("/missing").status_code == 500  # its own mistake, so no "try again later"
    assert client.get("/waiting").status_code == 200


def test_a_channel_that_died_in_a_request_is_replaced_in_it(app):
    with app.app_context():
        first = rabbitmq.channel()
        assert rabbitmq.channel() is first
        with pytest.raises(Exception, match="404"):
            first.declare(Queue("nobody made this"), passive=True)
        assert rabbitmq.channel().declare(Queue(QUEUE), passive=True).messages == 0
        assert rabbitmq.channel(confirm=True) is not rabbitmq.channel()


def test_thousand_requests_leave_nothing_behind(app, broker, settings):
    client = app.test_client()
    with nothing_left_behind():
        client.post("/orders", data="warm")
        client.get("/waiting")
        files, seen = descriptors(), channels(broker, settings.virtual_host)
        for number in range(500):
            assert client.get("/waiting").status_code == 200
            assert client.post("/orders", data=str(number)).status_code == 202
        pool = app.extensions["labkit"].pool
        assert (pool.get_stats().leased, pool.get_stats().size) == (0, 1)
        assert descriptors() <= files
        assert channels(broker, settings.virtual_host) == seen
        assert len(broker.connections(settings.virtual_host)) == 2
        with app.app_context():
            rabbitmq.close()


def timed(call):
    began = time.monotonic()
    answer = call()
    return answer, time.monotonic() - began


@pytest.mark.parametrize("path", ["/orders", "/waiting"])
def test_a_broker_that_is_gone_is_503_with_retry_after_and_no_hang(line, path):
    app, proxy = line
    client = app.test_client()
    call = client.post if path == "/orders" else client.get
    with proxy.fault(Refuse()):  # nothing is open yet
        answer, took = timed(lambda: call(path))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert took < DEADLINE + SLACK
        assert "cannot be reached" in answer.json["error"]
        assert "127.0.0.1" not in answer.text
    assert until(lambda: call(path).status_code < 300)
    with proxy.fault(Refuse()):
        proxy.cut()
        answer, took = timed(lambda: call(path))
        assert answer.status_code == 503
        assert took < DEADLINE + SLACK
    assert until(lambda: call(path).status_code < 300)


def test_a_silent_broker_is_503_that_says_that_the_outcome_is_unknown(line, settings):
    app, proxy = line
    client = app.test_client()
    assert client.post("/orders", data="before").status_code == 202
    with proxy.fault(Stall(), direction="downstream"):  # the message arrives, its confirm does not
        answer, took = timed(lambda: client.post("/orders", data="in doubt"))
    assert answer.status_code == 503
    assert "may have been delivered" in answer.json["error"]
    assert took < DEADLINE + 1 + SLACK
    assert until(lambda: client.post("/orders", data="after").status_code == 202)
    assert set(bodies(settings)) == {"before", "in doubt", "after"}


def test_no_message_is_answered_2xx_and_lost_while_the_link_is_cut_again_and_again(line, settings):
    app, proxy = line
    with served(app) as address:
        orders = Orders(address)
        threads = orders.start(clients=4, each=150)
        for _ in range(5):
            seen = len(orders.accepted)
            until(lambda seen=seen: len(orders.accepted) > seen + 10 or not any(each.is_alive() for each in threads))
            proxy.cut()
        for thread in threads:
            thread.join(60)
    assert set(orders.statuses) <= {202, 503}
    assert orders.broken == []
    assert set(orders.accepted) <= set(bodies(settings))


def test_a_browser_gets_a_page_and_the_applications_own_page_comes_first(line):
    app, proxy = line
    app.register_error_handler(503, lambda error: error if "page" in request.args else (f"ours: {error}", 503))
    client = app.test_client()
    with proxy.fault(Refuse()):
        page = client.post("/orders?page", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.mimetype == "text/html"
        assert (page.status_code, page.headers["Retry-After"]) == (503, "5")
        assert "try again later" in page.text
        assert client.post("/orders").text.startswith("ours: 503 Service Unavailable: The message broker")


def test_what_no_queue_would_receive_is_500_not_503(app):
    app.add_url_rule("/nowhere", "nowhere", lambda: rabbitmq.publish(routing_key="no such queue", body=b"x"))
    assert app.test_client().get("/nowhere").status_code == 500


def test_health_does_not_ask_the_broker_and_readiness_does(line):
    app, proxy = line
    client = app.test_client()
    assert client.get("/readyz").json == {"status": "ready"}
    with proxy.fault(Refuse()):
        proxy.cut()
        answer, took = timed(lambda: client.get("/readyz"))
        assert (answer.status_code, answer.json["status"]) == (503, "not ready")
        assert answer.headers["Retry-After"] == "5"
        assert took < 1 + SLACK
        assert client.get("/healthz").json == {"status": "alive"}
    assert until(lambda: client.get("/readyz").status_code == 200)


def test_metrics_say_what_this_process_published_and_lent(app):
    with served(app) as address:
        before = {
            name: exported(address, name) or 0.0
            for name in ('messages_published_total{outcome="confirmed"}', 'pool_checkouts_total{result="granted"}')
        }
        orders = Orders(address)
        orders.post(clients=4, each=5)
        assert orders.statuses == {202: 20}
        assert httpx.get(f"{address}/waiting", trust_env=False).json() == {"messages": 20}
        grown = {name: exported(address, name) - value for name, value in before.items()}
        assert list(grown.values()) == [20, 1]
        assert exported(address, 'connection_state{state="open"}') >= 2


def test_metrics_tell_of_a_lost_link_and_need_no_broker(line):
    app, proxy = line
    lost = "connections_lost_total"
    with served(app) as address:
        Orders(address).post(clients=1, each=1)
        before = exported(address, lost)
        with proxy.fault(Refuse()):
            proxy.cut()
            assert until(lambda: exported(address, lost) > before)
            assert until(lambda: exported(address, 'connection_state{state="waiting"}') >= 1)  # between two attempts


def test_no_metrics_page_where_none_is_wanted(url):
    app = create_app(url, LABKIT_METRICS_PATH=None)
    assert app.test_client().get("/metrics").status_code == 404
    other = create_app(url, LABKIT_METRICS_PATH="/internal/metrics")
    assert other.test_client().get("/internal/metrics").status_code == 200
    assert other.test_client().get("/metrics").status_code == 404


@pytest.mark.own_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_request_after_a_broker_restart_succeeds_and_an_alarm_is_503():
    with brokers.own() as broker, application(declared(broker.settings().replace(heartbeat=5))) as app:
        client = app.test_client()
        assert client.post("/orders", data="before").status_code == 202
        assert client.get("/waiting").json == {"messages": 1}
        broker.restart()
        answers = [client.post("/orders", data="after").status_code]
        while answers[-1] != 202:  # the next attempt to connect may come after a request's deadline, not after two
            assert answers in ([503], [503, 503])
            answers.append(client.post("/orders", data="after").status_code)
        assert client.get("/waiting").json == {"messages": 2}
        with broker.alarm():
            answer, took = timed(lambda: client.post("/orders", data="held"))
            assert answer.status_code == 503
            assert took < DEADLINE + 1 + SLACK
            assert until(lambda: client.get("/readyz").status_code == 503)
        assert until(lambda: client.post("/orders", data="again").status_code == 202)


@pytest.mark.slow
def test_the_development_servers_reloader_leaves_one_connection(broker, settings, url, tmp_path):
    program = tmp_path / "reloaded.py"
    program.write_text("from tests.broker.flask_program import create_app\napp = create_app()\n")
    command = ["-m", "flask", "--app", "reloaded", "run", "--debug", "--port", "{port}"]
    here = settings.virtual_host
    with server_process(command, url, tmp_path / "log") as (_, address):
        orders = Orders(address)
        for number in (1, 2):
            orders.post(clients=2, each=5)
            names = {each.name for each in until(lambda: broker.connections(here), 60)}
            assert len(names) == 1
            program.write_text(f"{program.read_text()}# {number}\n")
            until(lambda names=names: not names & {each.name for each in broker.connections(here)}, 30)
            until(lambda: answers(f"{address}/readyz"), 30)
    assert (dict(orders.statuses), orders.broken) == ({202: 20}, [])
    until(lambda: not broker.connections(here))


def test_an_application_without_a_url_or_with_an_odd_value_is_refused_before_any_io():
    for config, field in (
        ({}, "LABKIT_URL"),
        ({"LABKIT_URL": "amqp://localhost", "LABKIT_DEADLINE": -1}, "LABKIT_DEADLINE"),
        ({"LABKIT_URL": "amqp://localhost", "LABKIT_CHANNELS": 0}, "LABKIT_CHANNELS"),
        ({"LABKIT_URL": "amqp://localhost", "LABKIT_RETRY_AFTER": 1.5}, "LABKIT_RETRY_AFTER"),
    ):
        app = Flask("odd")
        app.config.update(config)
        with pytest.raises(ConfigurationError) as caught:
            RabbitMQ(app)
        assert caught.value.field == field
    with pytest.raises(ConfigurationError, match="already"):
        RabbitMQ(create_app("amqp://localhost"))


def test_an_interrupt_while_it_closes_leaves_no_connection(url, broker, settings):
    with application(url) as app:
        assert app.test_client().post("/orders", data="one").status_code == 202
        with app.app_context():
            rabbitmq.channel()
            with StopAfter(0.3) as stop:
                rabbitmq.close()
            assert stop.interrupted
            until(lambda: broker.connections(settings.virtual_host) == [])
    drained(settings, QUEUE, silence=0.5)
