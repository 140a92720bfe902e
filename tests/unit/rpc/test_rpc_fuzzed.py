"""Whatever is published, a server goes on, and so does a caller: nothing hangs, nothing is imported."""

import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.rpc import RabbitOptions, RPCClient, RPCServer, Target, Transport
from labkit.rpc.envelope import to_body
from tests.unit.rpc.test_envelope import BODIES, JSON, PROPERTIES, message
from tests.view import until

TOPIC = Target(topic="sums")
REQUESTS = st.fixed_dictionaries(
    {"method": st.sampled_from(["add", "echo", "__init__", "gone"]) | st.text(max_size=3)},
    optional={
        "args": st.dictionaries(st.sampled_from(["a", "b", "value", "self", "ctxt"]), JSON, max_size=3) | JSON,
        "version": st.sampled_from(["1.0", "2.0"]) | JSON,
        "namespace": st.none() | JSON,
        "_msg_id": st.just("m") | JSON,
        "_reply_q": st.sampled_from(["reply_gone", "", "\0", "\ud800", "q" * 300]) | JSON,
        "_timeout": st.sampled_from([None, 0, 1, -1, float("nan"), float("inf"), 10**30]) | JSON,
        "_unique_id": st.sampled_from(["u", "v"]) | JSON,
        "_context_user": JSON,
    },
)


class Sums:
    def add(self, ctxt, a, b):
        return a + b

    def echo(self, ctxt, value):
        return value


def test_a_server_serves_the_next_call_whatever_was_published_before():
    options = RabbitOptions(kombu_missing_consumer_retry_timeout=0)
    with (
        Transport("memory://", options=options) as transport,
        RPCServer(transport, TOPIC.replace(server="x"), [Sums()]),
    ):
        world, client = transport.driver.world, RPCClient(transport, TOPIC, timeout=20)

        @settings(max_examples=150)
        @given(
            bodies=st.lists(BODIES | REQUESTS.map(lambda each: to_body(each).encode()), min_size=1, max_size=4),
            properties=PROPERTIES,
        )
        def check(bodies, properties):
            before = set(sys.modules)
            for body in bodies:
                world.publish("openstack", "sums", message(body))
                world.publish("openstack", "sums", message(body, **properties))
                world.publish("", transport.driver._get_reply_q(), message(body))
            assert client.call({}, "add", a=1, b=2) == 3
            new = {each.partition(".")[0] for each in set(sys.modules) - before}
            assert new <= {"encodings"}

        check()
        until(lambda: not world.queue("sums").messages)
        assert len(transport.driver.replies) == 0
