"""What is written is what oslo.messaging writes, and whatever comes in is read, or is a BadMessage."""

import datetime
import json
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import ConfigurationError, Message
from labkit.rpc.envelope import (
    BODY_MAX,
    GZIP,
    SeenIds,
    context_entries,
    new_id,
    read_notification,
    read_payload,
    read_reply,
    read_request,
    reply_payload,
    to_body,
    to_message,
)
from labkit.rpc.failures import BadMessage, unpack_failure

REQUEST = {"method": "add", "args": {"a": 1}, "_unique_id": "u", "_msg_id": "m", "_reply_q": "reply_x"}
READERS = [read_request, read_reply, read_notification]


def message(body, **properties):
    properties = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
    return Message(body, **properties)


def test_a_body_is_an_object_of_version_and_payload_as_json_text_all_of_it_ascii():
    body = to_body({"method": "grüß"})
    assert body == '{"oslo.version": "2.0", "oslo.message": "{\\"method\\": \\"gr\\\\u00fc\\\\u00df\\"}"}'


def test_a_message_has_the_properties_of_oslo_messaging_and_no_others():
    properties = to_message("{}", expiration=2.5).to_pika()
    said = {name: value for name, value in vars(properties).items() if value is not None and name != "undecodable"}
    assert said == {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": 0,
        "expiration": "2500",
    }


def test_tuples_and_sets_become_lists_and_dates_text():
    moment = datetime.datetime(2026, 11, 29, 12, 0, 0, 5)  # noqa: DTZ001
    payload = read_payload(message(to_body({"a": (1, 2), "b": {3}, "c": moment})))
    assert payload == {"a": [1, 2], "b": [3], "c": "2026-11-29T12:00:00.000005"}


@pytest.mark.parametrize("value", [object(), float, {1: {object()}}])
def test_what_json_cannot_carry_is_refused_before_anything_is_sent(value):
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        to_body({"a": value})


def test_a_dict_and_an_object_with_to_dict_give_the_same_context_keys():
    class Context:
        def to_dict(self):
            return {"user": "ann"}

    assert context_entries(Context()) == context_entries({"user": "ann"}) == {"_context_user": "ann"}
    assert context_entries(None) == {}
    with pytest.raises(ConfigurationError, match="ctxt"):
        context_entries(7)


def test_a_request_comes_back_with_its_context_stripped_of_the_prefix():
    request = read_request(message(to_body({**REQUEST, "_context_user": "ann", "_timeout": 4})))
    assert (request.method, request.args, request.context) == ("add", {"a": 1}, {"user": "ann"})
    assert (request.msg_id, request.reply_q, request.unique_id, request.monitor) == ("m", "reply_x", "u", 4)
    assert (request.namespace, request.version) == (None, "1.0")


def test_a_body_without_an_envelope_is_format_one():
    assert read_request(message(json.dumps(REQUEST))).method == "add"


def test_any_json_in_any_unicode_is_taken():
    text = json.dumps({"oslo.message": json.dumps({"method": "ü"}, ensure_ascii=False), "oslo.version": "2.0"})
    assert read_request(message(text.encode("utf-16"), content_encoding="utf-16")).method == "ü"


@pytest.mark.parametrize("version", ["2.1", "3.0", "1.0", "", None, 2, "two", "2.0.0.0"])
def test_another_version_of_the_envelope_is_rejected(version):
    body = json.dumps({"oslo.version": version, "oslo.message": json.dumps(REQUEST)})
    with pytest.raises(BadMessage):
        read_request(message(body))


@pytest.mark.parametrize(
    "broken",
    [
        message(b"{"),
        message(b"\xff"),
        message(b"[" * 100_000),
        message(b"9" * 100_000),
        message(to_body(REQUEST), content_type="text/plain"),
        message(to_body(REQUEST), content_encoding="no-such-code"),
        message(b"x", headers={"compression": GZIP}),
        message(zlib.compress(to_body(REQUEST).encode())[:-4], headers={"compression": GZIP}),
        message(to_body(REQUEST), headers={"compression": "application/x-bz2"}),
        message(json.dumps({"oslo.version": "2.0", "oslo.message": {"method": "x"}})),
        message(to_body({"method": "x", "args": [1]})),
        message(to_body({"method": "x", "_timeout": "4"})),
        message(to_body({"method": "x", "version": "latest"})),
        message(to_body({"method": "x", "_msg_id": "m"})),
        message(to_body({"method": "x", "_msg_id": "m", "_reply_q": "q" * 256})),
        message(to_body({"method": "x", "_msg_id": "m", "_reply_q": "q\0"})),
        message(to_body({"method": "x", "_msg_id": "m", "_reply_q": "\ud800"})),
        message(to_body({"method": "x", "_timeout": float("nan")})),
        message(to_body({"method": "x", "_timeout": float("inf")})),
        message(to_body({"method": "x", "_timeout": -1})),
        message(to_body({"method": "x", "_timeout": True})),
        message(to_body({"method": "x", "namespace": 7})),
        message(to_body({"args": {}})),
        message("7"),
    ],
)
def test_what_is_no_request_is_a_bad_message(broken):
    with pytest.raises(BadMessage):
        read_request(broken)


def test_a_small_body_that_unpacks_to_a_huge_one_is_not_unpacked():
    bomb = zlib.compressobj()
    packed = b"".join(bomb.compress(bytes(1024 * 1024)) for _ in range(BODY_MAX // 1024 // 1024 + 1)) + bomb.flush()
    with pytest.raises(BadMessage, match="larger than"):
        read_payload(message(packed, headers={"compression": GZIP}))


def test_a_compressed_body_is_undone():
    sent = to_message(to_body(REQUEST), compression="gzip")
    assert sent.headers["compression"] == GZIP
    assert read_request(sent).method == "add"


def test_an_answer_is_read_as_it_was_written():
    ok = read_reply(message(to_body(reply_payload("m", {"x": [None]}, None))))
    assert (ok.msg_id, ok.result, ok.failure, ok.ending) == ("m", {"x": [None]}, None, True)
    sign = read_reply(message(to_body(reply_payload("m", None, None, ending=False))))
    assert (sign.result, sign.ending) == (None, False)
    assert ok.unique_id != sign.unique_id
    assert len(new_id()) == 32


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
WORDS = "method args namespace version _unique_id _msg_id _reply_q _timeout _context_a result failure ending priority"
KEYS = st.sampled_from([*WORDS.split(), "payload", "oslo.version", "oslo.message"])
PAYLOADS = st.dictionaries(KEYS, JSON | st.sampled_from(["1.0", "2.0", "info", "m"]), max_size=8)
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON.map(json.dumps).map(str.encode),
    PAYLOADS.map(json.dumps).map(str.encode),
    PAYLOADS.map(lambda payload: to_body(payload).encode()),
    st.tuples(JSON, JSON).map(lambda two: json.dumps({"oslo.version": two[0], "oslo.message": two[1]}).encode()),
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": st.sampled_from(["application/json", "text/plain", "application/x-python-serialize"]),
        "content_encoding": st.sampled_from(["utf-8", "utf-16", "latin-1", "binary", "hex", "idna", "zip\0"]),
        "headers": st.dictionaries(st.just("compression"), st.sampled_from([GZIP, "x", 7])),
    },
)


@given(body=BODIES, properties=PROPERTIES, reader=st.sampled_from(READERS))
def test_whatever_comes_is_read_or_is_a_bad_message_and_nothing_is_imported(body, properties, reader):
    incoming = Message.received(message(b"", **properties).to_pika(), body)
    before = set(sys.modules)
    try:
        read = reader(incoming)
        if getattr(read, "failure", None) is not None:
            unpack_failure(read.failure)
    except BadMessage:
        pass
    new = {each.partition(".")[0] for each in set(sys.modules) - before}
    assert new <= {"encodings", "stringprep"}  # Python's own tables of character sets, and what "idna" needs


def test_the_last_sixteen_ids_are_remembered():
    seen = SeenIds()
    assert [seen.add(str(number)) for number in range(17)] == [True] * 17
    assert seen.add("0")  # forgotten
    assert not seen.add("16")
    assert seen.has("16")
    seen.discard("16")
    assert seen.add("16")
    assert seen.add(None)
    assert seen.add(None)
    assert not seen.has(None)
    assert seen.copies == 2
