"""The rules about a broker find what is wrong with a real one; what the rehearsal of an upgrade names really breaks."""

import importlib
import time
from contextlib import contextmanager, suppress

import httpx
import pika
import pytest
from pika.exceptions import AMQPChannelError, AMQPConnectionError

from labkit import brokers
from labkit.audit import RULES, audit_broker, running
from labkit.audit.reading import source_of
from labkit.audit.rules import chosen
from tests.broker.backends import connect
from tests.broker.test_consumer_timeout import impatient_broker
from tests.broker.test_texts_of_the_broker import broker_without_transient_queues
from tests.view import until

pytestmark = pytest.mark.broker

ELSEWHERE = {  # below, in tests of their own
    "broker-no-tls",
    "broker-certificate-ends",
    "broker-deprecated-feature",
    "broker-mirrored-queue",
}


def found(broker, settings, *rules):
    """What these rules, or all, find in this test's virtual host."""
    seen = running.look(broker)
    here = running.Look(
        overview=seen.overview,
        users=seen.users,
        permissions=[each for each in seen.permissions if each["vhost"] == settings.virtual_host],
        queues=[each for each in seen.queues if each["vhost"] == settings.virtual_host],
        policies=[each for each in seen.policies if each["vhost"] == settings.virtual_host],
        connections=[each for each in seen.connections if each.get("vhost") == settings.virtual_host],
        consumers=[each for each in seen.consumers if each["queue"]["vhost"] == settings.virtual_host],
        certificate_days=seen.certificate_days,
    )
    wanted = [RULES[each] for each in rules] or chosen("broker")
    return sorted({rule.name for rule in wanted for _ in rule.check(here)})


def major(broker):
    return int(broker.version.split(".")[0])


def queue(**arguments):
    return lambda settings, channel, view: channel.queue_declare("q", durable=True, arguments=arguments)


def a_transient_queue(settings, channel, view):
    channel.queue_declare("passing", durable=False, arguments={"x-max-length": 10})


def a_mighty_program(settings, channel, view):
    name = f"mighty-{settings.virtual_host}"
    view.put(f"users/{name}", password="b8-Ux41-qh27-Wd", tags="")
    view.put(f"permissions/{settings.virtual_host}/{name}", configure=".*", write=".*", read=".*")


def a_consumer(prefetch, **options):
    def build(settings, channel, view):
        channel.queue_declare("q", durable=True, arguments={"x-max-length": 10})
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume("q", lambda *_: None, **options)

    return build


BROKEN = {
    "broker-unbounded-queue": queue(),
    "broker-queue-mode": queue(**{"x-queue-mode": "lazy", "x-max-length": 10}),
    "broker-no-delivery-limit": queue(**{"x-queue-type": "quorum", "x-max-length": 10}),
    "broker-transient-queue": a_transient_queue,
    "broker-wide-permissions": a_mighty_program,
    "broker-auto-ack": a_consumer(10, auto_ack=True),
    "broker-no-prefetch": a_consumer(0),
}


@contextmanager
def clean(settings, view):
    try:
        yield
    finally:
        with suppress(Exception):
            view.delete(f"users/mighty-{settings.virtual_host}")


def test_a_broker_that_keeps_the_rules_is_left_alone(broker, settings, view):
    with connect(settings) as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True, arguments={"x-max-length": 10})
        channel.queue_declare("mine", exclusive=True)
        limits = {"x-queue-type": "quorum", "x-max-length": 10, "x-delivery-limit": 5}
        channel.queue_declare("safe", durable=True, arguments=limits)
        view.put(f"policies/{settings.virtual_host}/limits", pattern="^by-policy$", definition={"max-length": 10})
        channel.queue_declare("by-policy", durable=True)
        channel.basic_qos(prefetch_count=10)
        channel.basic_consume("q", lambda *_: None)
        until(lambda: len(view.get(f"consumers/{settings.virtual_host}")) == 1)
        until(lambda: found(broker, settings) == [])


@pytest.mark.parametrize("rule", BROKEN)
def test_what_breaks_one_rule_is_found_by_that_rule(broker, settings, view, rule):
    if rule == "broker-no-delivery-limit" and major(broker) < 4:
        pytest.skip("no limit unless asked for: the rule is about 4.0 and later")
    with clean(settings, view), connect(settings) as connection:
        try:
            BROKEN[rule](settings, connection.channel(), view)
        except (AMQPConnectionError, AMQPChannelError) as refused:
            pytest.skip(f"RabbitMQ {broker.version} refuses it by itself: {refused}")
        until(lambda: found(broker, settings) == [rule])


def test_a_connection_without_heartbeats_is_found(broker, settings):
    with connect(settings.replace(heartbeat=0)):
        until(lambda: found(broker, settings) == ["broker-heartbeat-off"])


def test_every_rule_about_a_broker_is_executed_here():
    assert {each.name for each in chosen("broker")} == {
        *BROKEN, *ELSEWHERE, "broker-heartbeat-off", "broker-guest",
    }  # fmt: skip


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_guest_and_a_deprecated_feature_in_use_are_found():
    with brokers.own("local") as broker:
        assert not {each.rule for each in audit_broker(broker)} & {*ELSEWHERE, "broker-guest"}
        broker.ctl("add_user", "guest", "guest")
        with connect(broker.settings()) as connection:
            connection.channel().queue_declare("passing", durable=False)
            expected = {"broker-guest"} | ({"broker-deprecated-feature"} if major(broker) >= 4 else set())
            until(lambda: expected <= {each.rule for each in audit_broker(broker)})


def test_a_broker_whose_listeners_are_all_plain_is_found(broker):
    """As this one would be without its TLS listener, which is in its answer."""
    overview = running.look(broker).overview
    rule = RULES["broker-no-tls"]
    assert not list(rule.check(running.Look(overview=overview)))
    plain = [each for each in overview["listeners"] if each["protocol"] != "amqp/ssl"]
    assert len(plain) == len(overview["listeners"]) - 1
    assert list(rule.check(running.Look(overview={**overview, "listeners": plain})))


@pytest.mark.parametrize(("days", "is_found"), [(29.0, True), (31.0, False)])
def test_a_certificate_of_the_broker_that_ends_within_a_month_is_found(broker, days, is_found):
    assert running.look(broker).certificate_days > 30
    here = running.Look(certificate_days=days)
    assert bool(list(RULES["broker-certificate-ends"].check(here))) is is_found


# -- what the rehearsal of an upgrade names, executed: each on the broker that is here, whatever its version ---------


def version(broker):
    return tuple(int(each) for each in broker.version.split(".")[:2])


def is_named(rule, text):
    assert list(RULES[rule].check(source_of(text))), text
    return text


def run_on(settings, rule, text):
    """Run *text*, which the rule must name, with a channel; return what the broker's refusal was, or None."""
    with connect(settings) as connection:
        try:
            exec(is_named(rule, text), {"channel": connection.channel()})
        except (AMQPConnectionError, AMQPChannelError) as refusal:
            return refusal
    return None


def counted(settings, name="q"):
    with connect(settings) as connection:
        return connection.channel().queue_declare(name, passive=True).method.message_count


def test_a_prefetch_for_a_whole_channel_is_one_for_each_consumer_since_4_3(broker, settings):
    with connect(settings) as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True)
        for _ in range(40):
            channel.basic_publish("", "q", b"x")
        exec(is_named("global-qos", "channel.basic_qos(prefetch_count=5, global_qos=True)"), {"channel": channel})
        for _ in range(2):
            channel.basic_consume("q", lambda *_: None)
        connection.process_data_events(1)
        assert 40 - counted(settings) == (10 if version(broker) >= (4, 3) else 5)


def test_the_old_name_of_a_leaders_place_is_refused_since_4_3(broker, settings):
    text = "channel.queue_declare('q', durable=True, arguments={'x-queue-master-locator': 'min-masters'})"
    refusal = run_on(settings, "master-locator", text)
    assert (refusal is not None and refusal.reply_code == 541) == (version(broker) >= (4, 3))


def test_a_policy_for_mirrored_queues_is_refused_since_4_0(broker, settings, view):
    text = "view.put(path, pattern='^none$', definition={'ha-mode': 'all'})"
    path = f"policies/{settings.virtual_host}/mirrored"
    if version(broker) >= (4, 0):
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            exec(is_named("mirrored-queue", text), {"view": view, "path": path})
    else:
        exec(text, {"view": view, "path": path})
        assert found(broker, settings, "broker-mirrored-queue") == ["broker-mirrored-queue"]


def test_frames_that_are_too_small_are_refused_since_4_1(broker, settings):
    parameters = settings.to_pika()[0]
    text = is_named("small-frames", "parameters = pika.ConnectionParameters(frame_max=4096)")
    if pika.spec.FRAME_MIN_SIZE > 4096:  # Pika 1.5 refuses them itself
        with pytest.raises(ValueError, match="8192"):
            exec(text, {"pika": pika})
        return
    exec(text, {"pika": pika})
    parameters.frame_max = 4096
    refused = False
    try:
        pika.BlockingConnection(parameters).close()
    except AMQPConnectionError:
        refused = True
    assert refused == (version(broker) >= (4, 1))


def test_a_lazy_queue_is_declared_and_named(settings):
    text = "channel.queue_declare('q', durable=True, arguments={'x-queue-mode': 'lazy'})"
    assert run_on(settings, "queue-mode", text) is None


def soon(channel, patience=1.0):
    """Return the next message's method; None if there is none after *patience* seconds."""
    ends = time.monotonic() + patience
    while (method := channel.basic_get("q")[0]) is None and time.monotonic() < ends:
        time.sleep(0.02)
    return method


@pytest.mark.parametrize("verb", ["reject", "nack"])
def test_how_often_a_message_may_fail_depends_on_the_version_and_the_verb(broker, settings, verb):
    """Without a limit of its own: as often as it likes on 3.10, 20 times since 4.0; since 4.3 a nack does not count."""
    declare = is_named(
        "no-delivery-limit", "channel.queue_declare('q', durable=True, arguments={'x-queue-type': 'quorum'})"
    )
    fail = "try:\n    raise ValueError\nexcept ValueError:\n    channel.basic_nack(tag, requeue=True)"
    is_named("failure-not-counted", fail)
    with connect(settings) as connection:
        channel = connection.channel()
        exec(declare, {"channel": channel})
        channel.confirm_delivery()
        channel.basic_publish("", "q", b"always fails")
        handled = 0
        while handled < 30 and (method := soon(channel)) is not None:
            handled += 1
            if verb == "nack":
                exec(fail, {"channel": channel, "tag": method.delivery_tag})
            else:
                channel.basic_reject(method.delivery_tag, requeue=True)
    limited = version(broker) >= (4, 0) and (verb == "reject" or version(broker) < (4, 3))
    assert (handled < 30) == limited


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_transient_queue_ends_the_link_where_it_is_not_permitted():
    with broker_without_transient_queues() as broker:
        refusal = run_on(broker.settings(), "transient-queue", "channel.queue_declare('passing')")
        assert refusal is not None
        assert refusal.reply_code == 541


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_slow_consumer_is_no_longer_told_by_an_error_since_4_3():
    """The broker waits a second for an acknowledgement, the handler takes longer."""
    text = is_named("cancel-not-heard", "channel.start_consuming()")
    with impatient_broker() as broker, connect(broker.settings()) as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_consume("q", lambda *_: time.sleep(5))
        channel.basic_publish("", "q", b"x")
        if version(broker) >= (4, 3):
            exec(text, {"channel": channel})
            assert (channel.is_open, channel.consumer_tags) == (True, [])
        else:
            with pytest.raises(AMQPChannelError, match="timed out"):
                exec(text, {"channel": channel})


@pytest.mark.skipif(not hasattr(pika, "Connection"), reason="came with Pika 1.5")
@pytest.mark.parametrize("adapter", ["Blocking", "Tornado", "Gevent", "Twisted"])
def test_a_deprecated_adapter_warns_on_pika_1_5(settings, adapter):
    names = {"Twisted": "TwistedProtocolConnection"}
    name = names.get(adapter, f"{adapter}Connection")
    module = importlib.import_module(f"pika.adapters.{adapter.lower()}_connection")
    text = is_named("deprecated-adapter", f"{name}(parameters)")
    with pytest.warns(DeprecationWarning, match="will be removed in Pika 2.0"):
        made = eval(text, {name: getattr(module, name), "parameters": settings.to_pika()[0]})
    if adapter == "Blocking":
        made.close()


@pytest.mark.skipif(not hasattr(pika, "Connection"), reason="came with Pika 1.5")
def test_pika_compat_is_gone_from_pika_1_5():
    with pytest.raises(ImportError):
        exec(is_named("pika-compat", "import pika.compat"))
