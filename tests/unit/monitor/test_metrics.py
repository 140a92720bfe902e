"""The table of metrics, and what is said about them elsewhere: documentation, alert rules, dashboard. No broker."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import prometheus_client
import pytest
from prometheus_client import multiprocess

from labkit import BrokerSettings, Connection, ConnectionMonitor, ConnectionPool, PoolStats, State
from labkit.messaging.confirmations import Outcome
from labkit.messaging.tally import CONFIRM_BUCKETS, ConsumeTally, PublishTally
from labkit.monitor import DASHBOARD, RULES, AlertKind
from labkit.monitor.counts import Counts
from labkit.monitor.metrics import exporter
from labkit.monitor.table import ALERTS, METRICS, OUTCOMES, PREFIX, STATES, as_markdown
from labkit.watched import Watched

SETTINGS = BrokerSettings()
PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
NAME = re.compile(rf"{PREFIX}\w+")
EXPORTED = {PREFIX + each.name for each in METRICS} | {
    f"{PREFIX}{each.name}_{part}" for each in METRICS if each.kind == "histogram" for part in ("bucket", "sum", "count")
}


def test_the_page_has_the_table():
    _, begin, rest = PAGE.read_text().partition("<!-- metrics -->\n")
    table, end, _ = rest.partition("<!-- /metrics -->")
    assert begin
    assert end
    assert table == as_markdown()


def test_the_page_lists_every_alert_rule():
    rules = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert len(rules) >= 10
    assert re.findall(r"^\| (Labkit\w+) \|", PAGE.read_text(), re.MULTILINE) == rules


def test_names_and_units_are_as_prometheus_has_them():
    assert len({each.name for each in METRICS}) == len(METRICS) > 20
    for each in METRICS:
        assert each.name.endswith("_total") == (each.kind == "counter"), each.name
        assert not re.search(r"_(ms|milliseconds|minutes|days|kb|kilobytes)(_|$)", each.name)
        assert each.help.endswith("."), each.name


def test_labels_are_the_librarys_own_words():
    assert set(STATES) == {each.value for each in State}
    assert set(OUTCOMES) == {each.value for each in Outcome}
    assert set(ALERTS) == {each.value for each in AlertKind}


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_rules_and_dashboard_name_no_metric_that_is_not_exported(path):
    named = set(NAME.findall(path.read_text())) - {"labkit_clients"}
    assert len(named) > 8
    assert named <= EXPORTED


def test_the_dashboard_is_json_with_an_expression_in_every_panel():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len(panels) > 10
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


def value(registry, name, **labels):
    return registry.get_sample_value(PREFIX + name, labels)


def test_every_metric_is_exported_with_its_help_text(registry):
    monitor = ConnectionMonitor(connection := Connection(SETTINGS))
    text = monitor.export_to(registry).text()
    for each in METRICS:
        assert f"# HELP {PREFIX}{each.name} {each.help}\n# TYPE {PREFIX}{each.name} {each.kind}\n" in text
    assert set(NAME.findall(text)) >= EXPORTED
    del connection


@pytest.mark.prometheus
def test_promtool_finds_nothing_wrong_with_what_is_exported(registry):
    monitor = ConnectionMonitor(connection := Connection(SETTINGS))
    text = monitor.export_to(registry).text()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    del connection


def test_every_scrape_is_of_its_moment(registry):
    connection, pool = Connection(SETTINGS), ConnectionPool(SETTINGS, max_size=3)
    with ConnectionMonitor(connection, interval=60.0) as one, ConnectionMonitor(pool, interval=60.0) as other:
        assert one.export_to(registry) is other.export_to(registry)
        assert value(registry, "connection_state", state="new") == 1
        assert value(registry, "pool_max_entries") == 3
        pool.resize(0, 7)
        assert value(registry, "pool_max_entries") == 7
    assert value(registry, "pool_max_entries") == 0
    assert value(registry, "connection_state", state="new") == 0


def test_numbers_of_two_monitors_are_summed(registry):
    pools = [ConnectionPool(SETTINGS, max_size=size) for size in (3, 4)]
    monitors = [ConnectionMonitor(each).start() for each in pools]
    for each in monitors:
        each.export_to(registry)
    assert value(registry, "pool_max_entries") == 7
    for each in monitors:
        each.stop()


def test_prometheus_client_has_what_a_histogram_is_counted_up_with(registry):
    histogram = prometheus_client.Histogram("h", "Help.", buckets=CONFIRM_BUCKETS, registry=registry)
    assert len(histogram._buckets) == len(CONFIRM_BUCKETS) + 1
    histogram._buckets[0].inc(2)
    histogram._buckets[-1].inc(1)
    histogram._sum.inc(11.0)
    assert registry.get_sample_value("h_count") == 3
    assert registry.get_sample_value("h_bucket", {"le": "0.001"}) == 2
    assert registry.get_sample_value("h_sum") == 11.0


def test_a_confirm_counts_in_the_bucket_that_it_fits_in():
    tally = PublishTally()
    tally.settled("confirmed", -1e9)  # long ago
    tally.settled("returned", 0.0)
    assert tally.buckets == [0] * len(CONFIRM_BUCKETS) + [1]
    assert tally.outcomes == {"confirmed": 1, "returned": 1}


class Part:
    """What a publisher or consumer shows a monitor."""

    def __init__(self):
        self._tally = ConsumeTally()


def test_what_a_consumer_that_is_gone_had_counted_stays_in_the_sum():
    counts, first, second = Counts(), Part(), Part()
    first._tally.delivered = 5
    assert counts.take(Watched(consumers=(first,)))["deliveries_total", ""] == 5
    first._tally.delivered = 7  # the last before its end
    second._tally.delivered = 1
    assert counts.take(Watched(consumers=(second,)))["deliveries_total", ""] == 8
    first._tally.delivered = 100  # nobody asks any more
    assert counts.take(Watched(consumers=(second,)))["deliveries_total", ""] == 8


def test_numbers_of_a_pool_that_begin_again_do_not_fall():
    counts = Counts()
    for lost in (3, 1, 2):
        stats = PoolStats(size=0, idle=0, leased=0, waiting=0, connecting=0, lost=lost)
        found = counts.take(Watched(pools=(SimpleNamespace(get_stats=lambda stats=stats: stats),)))
    assert found["pool_lost_total", ""] == 3 + 1 + 1


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['prometheus_client'] = None; import labkit\n"
        "connection = labkit.Connection(labkit.BrokerSettings())\n"
        "try: labkit.ConnectionMonitor(connection).metrics\n"
        "except labkit.MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'labkit-rabbitmq[metrics]'" in done.stdout, done.stderr


def test_a_registry_that_is_forgotten_is_not_kept():
    connection = Connection(SETTINGS)
    monitor = ConnectionMonitor(connection)
    first = monitor.export_to(prometheus_client.CollectorRegistry())
    assert exporter(first.registry) is first


SERIES = {  # what a program exports, minute by minute
    'labkit_connection_state{job="j",instance="i",state="waiting"}': "0 0 1x3 0x20",
    'labkit_connection_blocked{job="j",instance="i"}': "0 0 1x5 0x20",
    'labkit_io_thread_lag_seconds{job="j",instance="i"}': "0 0 3x5 0x20",
    'labkit_pool_waiting{job="j",instance="i"}': "0 0 2x5 0x20",
    'labkit_pool_overdue_leases{job="j",instance="i"}': "0 0 1x9 0x20",
    'labkit_connections_lost_total{job="j",instance="i"}': "0 0 0+2x6 12x20",
    'labkit_certificate_expiry_timestamp_seconds{job="j",instance="i"}': "864000x5 8640000x20",
    'labkit_certificate_expiry_timestamp_seconds{job="j",instance="plain"}': " ".join(["Inf"] * 25),
    'labkit_messages_published_total{job="j",instance="i",outcome="confirmed"}': "0+99x30",
    'labkit_messages_published_total{job="j",instance="i",outcome="unknown"}': "0 0 0+1x3 3x20",
    'labkit_publish_confirm_seconds_bucket{job="j",instance="i",le="1.0"}': "0x13 0+100x20",
    'labkit_publish_confirm_seconds_bucket{job="j",instance="i",le="2.5"}': "0+10x12 130+100x20",
    'labkit_publish_confirm_seconds_bucket{job="j",instance="i",le="+Inf"}': "0+10x12 130+100x20",
    'labkit_deliveries_handled_total{job="j",instance="i",result="raised"}': "0+2x12 24x20",
    'labkit_deliveries_handled_total{job="j",instance="i",result="returned"}': "0+8x40",
}
FIRES = {  # the minute at which it does, and one at which it does not any more
    "LabkitConnectionLost": (4, 8),
    "LabkitConnectionFlaps": (8, 25),
    "LabkitPublishingBlocked": (5, 9),
    "LabkitIoThreadLags": (5, 9),
    "LabkitConfirmsSlow": (10, 30),
    "LabkitMessagesNotConfirmed": (5, 15),
    "LabkitHandlersFail": (12, 25),
    "LabkitPoolExhausted": (5, 9),
    "LabkitLeaseLeak": (9, 13),
    "LabkitCertificateExpires": (3, 7),
}


@pytest.mark.prometheus
def test_every_rule_fires_and_clears_as_promtool_plays_it(tmp_path):
    assert set(FIRES) == set(re.findall(r"- alert: (\w+)", RULES.read_text()))

    def firing(rule, minute, samples):
        expression = f'count by (instance) (ALERTS{{alertname="{rule}",alertstate="firing"}})'
        return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}

    once = [{"labels": '{instance="i"}', "value": 1}]
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "10s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in SERIES.items()],
                "promql_expr_test": [firing(rule, begin, once) for rule, (begin, _) in FIRES.items()]
                + [firing(rule, end, []) for rule, (_, end) in FIRES.items()],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps(tests))  # which is YAML, too
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


ENDS = """
from labkit import BrokerSettings, Connection, ConnectionMonitor
connection = Connection(BrokerSettings())
with ConnectionMonitor(connection, interval=60.0) as monitor:
    monitor.metrics.refresh()
    monitor._watch.counts.add("connect_failures_total")
    monitor._watch.is_running = False  # it says nothing as it is closed, as if the process ended in the block
"""


def test_a_process_that_ends_leaves_what_it_counted_since_the_last_look(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ENDS], env=environment, timeout=60, check=True)
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(tmp_path))
    assert registry.get_sample_value("labkit_connect_failures_total") == 1
