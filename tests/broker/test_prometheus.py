"""A real Prometheus scrapes a real program: through a broker's restart, and under a server of two processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import prometheus_client
import pytest

from labkit import Backoff, Connection, ConnectionManager, Queue, brokers
from labkit.monitor import DASHBOARD, RULES
from tests.view import until

ALERT = "LabkitConnectionLost"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def prometheus(target, folder):
    """A Prometheus that scrapes *target* every second, with our rules; yields a function that asks its API."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "service", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log, stdout=log) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10.0) as client:

                def ask(path, **parameters):
                    answer = client.get(f"/api/v1/{path}", params=parameters).json()
                    assert answer["status"] == "success", answer
                    return answer["data"]

                def is_ready():
                    with contextlib.suppress(httpx.HTTPError):
                        return client.get("/-/ready").status_code == 200

                until(is_ready, 60)
                ask.address = f"http://127.0.0.1:{port}"
                yield ask
        finally:
            server.terminate()


def firing(ask):
    return {each["labels"]["alertname"] for each in ask("alerts")["alerts"] if each["state"] == "firing"}


def expressions():
    """Every expression of the dashboard, as Grafana would send it."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"].replace("$job", ".*").replace("$__rate_interval", "1m")
            assert "$" not in expression
            yield panel["title"], expression


def screenshot(address, path):
    """Have a browser show the page of the rules, where there is one."""
    from playwright.sync_api import sync_playwright

    from tests.lab.jupyter_page import ARGUMENTS, program

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS, env={**os.environ})
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        if page.goto(f"{address}/classic/rules").status == 404:  # Debian's has the old pages only, newer ones others
            page.goto(f"{address}/rules")
        page.wait_for_selector(f"text={ALERT}", state="attached", timeout=30_000)
        page.screenshot(path=path)
        browser.close()


@pytest.mark.broker
@pytest.mark.own_broker
@pytest.mark.prometheus
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_alert_of_a_broker_that_is_down_fires_and_clears_and_the_dashboard_shows_the_run(tmp_path):
    registry = prometheus_client.CollectorRegistry()
    node = brokers.up("local", tmp_path / "bench")
    try:
        settings = node.settings().replace(heartbeat=5)
        backoff = Backoff(initial=0.1, maximum=1.0)
        over = threading.Event()
        with ConnectionManager(settings, backoff=backoff) as manager:
            with Connection(settings) as connection:
                connection.channel().declare(Queue("scraped", durable=True))
            manager.monitor.export_to(registry)
            server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry=registry)
            manager.consume("scraped", lambda delivery: delivery.ack())

            def publish():
                while not over.wait(0.05):
                    manager.publish("", "scraped", "x", deadline=60.0)

            work = threading.Thread(target=publish)
            work.start()
            with prometheus(server.server_port, tmp_path) as ask:
                until(lambda: ask("query", query="sum(rate(labkit_deliveries_total[1m])) > 1")["result"], 60)
                assert firing(ask) == set()
                node.stop()
                until(lambda: ALERT in firing(ask), 60)
                node.start()
                until(lambda: ALERT not in firing(ask), 60)
                until(lambda: ask("query", query="labkit_reconnects_total >= 2")["result"], 60)
                nothing = [title for title, each in expressions() if not ask("query", query=each)["result"]]
                assert nothing == []
                rules = ask("rules")["groups"][0]["rules"]
                assert {each["health"] for each in rules} == {"ok"}
                assert [each["name"] for each in rules] == re.findall(r"- alert: (\w+)", RULES.read_text())
                if picture := os.environ.get("LABKIT_TEST_PICTURE"):
                    screenshot(ask.address, picture)
            over.set()
            work.join(90)
            server.shutdown()
            server.server_close()
            thread.join(10)
    finally:
        brokers.down(tmp_path / "bench")


SERVICE = """
import os
from labkit import BrokerSettings, ConnectionManager, ConnectionMonitor
manager = ConnectionManager(BrokerSettings.from_url(os.environ["SERVICE_URL"]))
monitor = ConnectionMonitor(manager, interval=0.2).start()
metrics = monitor.metrics

def app(environ, start_response):
    body = str(os.getpid())
    if environ["PATH_INFO"] == "/publish":
        manager.publish("", "prefork", "x").result()
    elif environ["PATH_INFO"] == "/metrics":
        body = metrics.text()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]
"""
CONFIG = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


def sample(text, name):
    found = re.search(rf"^{re.escape('labkit_' + name)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn forks")
@pytest.mark.parametrize("preload", [False, True], ids=["each worker imports", "imported before the fork"])
def test_under_gunicorn_the_numbers_of_two_workers_add_up(settings, tmp_path, preload):
    with Connection(settings) as connection:
        connection.channel().declare(Queue("prefork", durable=True))
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "shared").mkdir()
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "service:app"]
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared"),
        "SERVICE_URL": settings.to_url(mask=False),
    }
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(
        command + ["--preload"] * preload, cwd=tmp_path, env=environment, stdout=log, stderr=log
    ) as server:  # fmt: skip
        try:

            def ask(path):
                return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30.0).text  # a connection each: any worker

            def answers():
                with contextlib.suppress(httpx.HTTPError):
                    return ask("/")

            until(answers, 60)
            workers, published = {}, 0
            ends = time.monotonic() + 60
            while (len(workers) < 2 or published < 40) and time.monotonic() < ends:
                pid = ask("/publish")
                workers[pid] = workers.get(pid, 0) + 1
                published += 1
            assert len(workers) == 2, workers

            def seen(name):
                return sample(ask("/metrics"), name)

            confirmed = 'messages_published_total{outcome="confirmed"}'
            until(lambda: seen(confirmed) == published)
            assert seen("publish_confirm_seconds_count") == published
            assert seen("messages_sent_total") == published
            until(lambda: seen('connection_state{state="open"}') == 2)
            for _ in range(10):  # whichever answers
                assert seen(confirmed) == published
            os.kill(int(next(iter(workers))), signal.SIGTERM)
            until(lambda: seen('connection_state{state="open"}') == 1)
            assert seen(confirmed) == published
        finally:
            server.terminate()
            server.wait(60)  # gunicorn gives its workers 30 s
