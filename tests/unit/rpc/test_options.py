"""RabbitOptions are oslo.messaging's: the same names, the same defaults; and what each of them declares."""

import json
import subprocess
import sys

import pytest

from labkit import BrokerSettings, ConfigurationError, Exchange, Queue
from labkit.rpc import RabbitOptions
from labkit.rpc.options import REFUSED

# On the machine that runs this; a process of its own, for oslo.messaging's imports warn.
OSLO = """
import json
from oslo_messaging._drivers import amqp, impl_rabbit
print(json.dumps({each.dest: each.default for each in (*impl_rabbit.rabbit_opts, *amqp.amqp_opts)}))
"""
MACHINES_OWN = {"hostname", "processname"}


def test_names_and_defaults_are_those_of_the_installed_oslo_messaging():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", OSLO], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    ours = {name: field.default for name, field in RabbitOptions.model_fields.items()}
    assert set(ours) == set(theirs)
    assert {name: ours[name] for name in ours if name not in MACHINES_OWN} == {
        name: theirs[name] for name in theirs if name not in MACHINES_OWN
    }


def test_a_misspelt_option_is_refused_by_name_and_the_nearest_is_named():
    with pytest.raises(ConfigurationError, match=r"'rabbit_quorum_queues'.*nearest: rabbit_quorum_queue"):
        RabbitOptions(rabbit_quorum_queues=True)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_labkit_does_not_do_is_refused_by_name(name):
    value = "other" if isinstance(RabbitOptions.model_fields[name].default, str | None) else not REFUSED[name][0][0]
    with pytest.raises(ConfigurationError) as caught:
        RabbitOptions(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"rpc_conn_pool_size": 1}, "conn_pool_min_size"),
        ({"rpc_conn_pool_size": 0}, "rpc_conn_pool_size"),
        ({"rabbit_quorum_queue": True, "rabbit_ha_queues": True}, "rabbit_ha_queues"),
        ({"rabbit_transient_queues_ttl": -1}, "rabbit_transient_queues_ttl"),
    ],
)
def test_values_that_cannot_be_are_refused(values, field):
    with pytest.raises(ConfigurationError) as caught:
        RabbitOptions(**values)
    assert caught.value.field == field


def test_by_default_nothing_is_durable_and_transient_queues_expire_after_half_an_hour():
    options = RabbitOptions()
    assert options.control_exchange("openstack") == Exchange("openstack", "topic", durable=False)
    assert options.shared_queue("t") == Queue("t", durable=False)
    assert options.fanout_exchange("t") == Exchange("t_fanout", "fanout", durable=False, auto_delete=True)
    assert options.transient_queue("reply_x") == Queue("reply_x", durable=False, arguments={"x-expires": 1800000})


@pytest.mark.parametrize(
    ("values", "exchange", "queue"),
    [
        ({"amqp_durable_queues": True}, {"durable": True}, {"durable": True}),
        ({"amqp_auto_delete": True}, {"auto_delete": True}, {"auto_delete": True}),
        (
            {"rabbit_quorum_queue": True, "rabbit_quorum_delivery_limit": 3},
            {"durable": True},
            {"durable": True, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 3}},
        ),
        ({"rabbit_ha_queues": True}, {}, {"arguments": {"x-ha-policy": "all"}}),
    ],
)
def test_options_change_exchange_and_shared_queues(values, exchange, queue):
    options = RabbitOptions(**values)
    assert options.control_exchange("x") == Exchange("x", "topic", **{"durable": False, **exchange})
    assert options.shared_queue("t") == Queue("t", **{"durable": False, **queue})


def test_transient_queues_may_be_quorum_queues_and_never_expire():
    options = RabbitOptions(rabbit_transient_quorum_queue=True, rabbit_transient_queues_ttl=0)
    assert options.transient_queue("q") == Queue("q", arguments={"x-queue-type": "quorum"})
    assert options.fanout_exchange("t").durable
    assert not options.shared_queue("t").durable


def test_options_of_the_connection_are_laid_over_the_settings(tmp_path):
    (tmp_path / "ca.pem").write_text("")
    settings = BrokerSettings(hosts=("a", "b", "c"))
    options = RabbitOptions(heartbeat_timeout_threshold=7, ssl=True, ssl_ca_file=str(tmp_path / "ca.pem"))
    applied = options.applied(settings)
    assert applied.heartbeat == 7
    assert RabbitOptions().applied(settings.replace(heartbeat=2)).heartbeat == 2
    assert str(applied.tls.ca_file) == str(tmp_path / "ca.pem")
    shuffled = RabbitOptions(kombu_failover_strategy="shuffle").applied(settings)
    assert sorted(shuffled.hosts) == ["a", "b", "c"]
    assert RabbitOptions(rabbit_qos_prefetch_count=5).prefetch == 5
    assert RabbitOptions(enable_cancel_on_failover=True).consume_arguments == {"x-cancel-on-ha-failover": True}
    assert RabbitOptions(rabbit_retry_interval=40).backoff.maximum == 40
