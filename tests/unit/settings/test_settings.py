import copy
import logging
import os
import pickle
import ssl
import traceback
import warnings

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import BrokerSettings, ConfigurationError, InsecureTls, LabkitError, TlsSettings
from labkit.settings.settings import CAPABILITIES

SECRET = "s3cret-p4ss"


def refused(function, *args, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        function(*args, **kwargs)
    return caught.value


# --- what is accepted -------------------------------------------------------------------------------------------


def test_defaults_are_a_local_broker_as_guest():
    settings = BrokerSettings()
    assert (settings.host, settings.port, settings.virtual_host) == ("localhost", None, "/")
    assert settings.username == "guest"
    assert settings.password.get_secret_value() == "guest"
    assert settings.addresses == (("localhost", 5672),)


def test_every_parameter_reaches_pika_field_by_field():
    wanted = {
        "host": "mq.example",
        "port": 5673,
        "virtual_host": "shop",
        "heartbeat": 7,
        "blocked_connection_timeout": 11.0,
        "connection_attempts": 3,
        "retry_delay": 0.5,
        "socket_timeout": 4.0,
        "stack_timeout": 9.0,
        "channel_max": 12,
        "frame_max": pika.spec.FRAME_MIN_SIZE,
        "locale": "de_DE",
    }
    settings = BrokerSettings(
        **wanted, username="ann", password=SECRET, tcp_options={"TCP_KEEPIDLE": 60}, connection_name="orders"
    )
    (parameters,) = settings.to_pika()
    assert {name: getattr(parameters, name) for name in wanted} == wanted
    assert parameters.credentials == pika.PlainCredentials("ann", SECRET)
    assert parameters.tcp_options == {"TCP_KEEPIDLE": 60}
    assert parameters.client_properties["connection_name"] == "orders"
    assert parameters.ssl_options is None


def test_heartbeat_takes_none_and_a_function():
    def choose(connection, proposed):
        return proposed // 2

    assert BrokerSettings(heartbeat=None).to_pika()[0].heartbeat is None
    assert BrokerSettings(heartbeat=choose).to_pika()[0].heartbeat is choose


def test_port_follows_tls_unless_it_is_given():
    assert BrokerSettings(tls=TlsSettings()).addresses == (("localhost", 5671),)
    assert BrokerSettings(tls=TlsSettings(), port=1234).addresses == (("localhost", 1234),)


def test_several_hosts_give_one_parameter_object_each_in_order():
    settings = BrokerSettings(hosts=("a", "b:5673", "[::1]:5674", "::2"))
    assert [(each.host, each.port) for each in settings.to_pika()] == [
        ("a", 5672),
        ("b", 5673),
        ("::1", 5674),
        ("::2", 5672),
    ]


def test_product_version_and_platform_are_sent_and_can_be_changed():
    properties = BrokerSettings(client_properties={"product": "shop", "team": "blue"}).to_pika()[0].client_properties
    assert properties["product"] == "shop"
    assert properties["team"] == "blue"
    assert properties["version"]
    assert "Python" in properties["platform"]


def test_own_capabilities_never_drop_the_default_ones():
    properties = BrokerSettings(client_properties={"capabilities": {"mine": True}}).to_pika()[0].client_properties
    assert properties["capabilities"] == {**CAPABILITIES, "mine": True}


def test_capabilities_are_the_ones_pika_sends_by_itself():
    connection = object.__new__(pika.SelectConnection)
    connection.params = pika.ConnectionParameters()
    assert connection._client_properties["capabilities"] == CAPABILITIES


def test_tls_context_verifies_certificate_and_name():
    options = BrokerSettings(host="mq.example", tls=TlsSettings()).to_pika()[0].ssl_options
    assert options.context.verify_mode is ssl.CERT_REQUIRED
    assert options.context.check_hostname
    assert options.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert options.server_hostname == "mq.example"


def test_tls_name_follows_the_host_unless_it_is_given():
    hosts = BrokerSettings(hosts=("a", "b"), tls=TlsSettings())
    assert [each.ssl_options.server_hostname for each in hosts.to_pika()] == ["a", "b"]
    named = hosts.replace(tls=TlsSettings(server_name="mq"))
    assert [each.ssl_options.server_hostname for each in named.to_pika()] == ["mq", "mq"]


def test_insecure_switches_both_checks_off():
    with pytest.warns(InsecureTls):
        context = TlsSettings(insecure=True, minimum_version="TLSv1.3").make_context()
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_insecure_warns_each_time_a_context_is_made():
    tls = TlsSettings(insecure=True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")  # what a program has that says nothing: the same warning once a place
        for _ in range(3):
            tls.make_context()
    assert [each.category for each in heard] == [InsecureTls] * 3
    assert "ca_file" in str(heard[0].message)


def test_external_login_sends_no_password_and_needs_a_client_certificate():
    tls = TlsSettings(cert_data="PEM")
    settings = BrokerSettings(tls=tls, auth_mechanism="EXTERNAL")
    assert type(settings._login(ask=True)).__name__ == "ExternalCredentials"
    assert BrokerSettings.from_url(settings.to_url(mask=False)) == settings
    for without in (None, TlsSettings()):
        error = refused(BrokerSettings, tls=without, auth_mechanism="EXTERNAL")
        assert error.field == "auth_mechanism"
        assert "cert_file" in error.allowed


# --- immutable values -------------------------------------------------------------------------------------------


def test_settings_cannot_be_changed_in_place():
    settings = BrokerSettings(client_properties={"a": {"b": [1]}})
    with pytest.raises(Exception, match="frozen"):
        settings.heartbeat = 3
    with pytest.raises(TypeError):
        settings.client_properties["a"] = 1
    with pytest.raises(TypeError):
        settings.client_properties["a"]["c"] = 1
    with pytest.raises((TypeError, AttributeError)):
        settings.client_properties["a"]["b"].append(2)


@pytest.mark.parametrize("change", [{"virtual_host": "b"}, {"password": "x"}, {"client_properties": {"a": 1}}])
def test_settings_that_differ_in_any_field_are_unequal(change):
    one = BrokerSettings(host="h")
    assert one == BrokerSettings(host="h")
    assert hash(one) == hash(BrokerSettings(host="h"))
    assert one != one.replace(**change)
    assert len({one, one.replace(**change)}) == 2


def test_caller_can_go_on_changing_its_own_dict():
    own = {"a": [1]}
    settings = BrokerSettings(client_properties=own)
    own["a"].append(2)
    assert settings.client_properties["a"] == (1,)


def test_settings_survive_pickle_and_deepcopy():
    settings = BrokerSettings(
        password=SECRET, client_properties={"a": {"b": [1]}}, tls=TlsSettings(ca_file="x"), hosts=("a", "b:1")
    )
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) == settings


def test_replace_validates_again():
    assert refused(BrokerSettings().replace, heartbeat=-1).field == "heartbeat"
    assert refused(BrokerSettings().replace, hartbeat=1).field == "hartbeat"


def test_replace_swaps_one_host_for_several_and_back():
    several = BrokerSettings(host="a", port=1).replace(hosts=("b:2", "c"))
    assert several.addresses == (("b", 2), ("c", 5672))
    assert several.replace(heartbeat=3).addresses == several.addresses
    assert several.replace(host="d").addresses == (("d", 5672),)


def test_environment_is_not_read_by_the_constructor(monkeypatch):
    monkeypatch.setenv("HOST", "elsewhere")
    monkeypatch.setenv("LABKIT_HOST", "elsewhere")
    assert BrokerSettings().host == "localhost"


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 99999),
        ("port", 0),
        ("port", True),
        ("port", "five"),
        ("port", 2.5),
        ("heartbeat", -1),
        ("heartbeat", True),
        ("heartbeat", 70000),
        ("connection_attempts", 0),
        ("retry_delay", -1),
        ("socket_timeout", 0),
        ("stack_timeout", float("inf")),
        ("connect_deadline", 0),
        ("host_order", "random"),
        ("host_order", None),
        ("connect_deadline", None),
        ("blocked_connection_timeout", float("nan")),
        ("channel_max", 65536),
        ("frame_max", 4095),
        ("frame_max", 131073),
        ("locale", ""),
        ("host", ""),
        ("host", "a b"),
        ("host", 5),
        ("virtual_host", "x" * 256),
        ("virtual_host", "\ud800"),
        ("username", ""),
        ("username", "a\0b"),
        ("tls", 3),
    ],
)
def test_value_that_cannot_be_is_refused_with_field_value_and_what_is_allowed(field, value):
    error = refused(BrokerSettings, **{field: value})
    assert error.field == field
    assert f"BrokerSettings.{field}" in str(error)
    assert "allowed: " in str(error)
    assert error.allowed
    if isinstance(value, int | float) and value == value:
        assert error.value == value
        assert repr(value) in str(error)


@pytest.mark.parametrize(
    ("field", "value", "clue"),
    [
        ("client_properties", {"a": {1, 2}}, "set"),
        ("client_properties", {"a": 2**63}, "64 bits"),
        ("client_properties", {"": 1}, "name"),
        ("client_properties", [1], "mapping"),
        ("tcp_options", {"TCP_NODELAY": 1}, "TCP_NODELAY"),
        ("tcp_options", {"TCP_KEEPIDLE": True}, "TCP_KEEPIDLE"),
        ("host", "a:99", "port=99"),
        ("hosts", ("a", "b:0"), "port"),
        ("hosts", ("a", 3), "hosts"),
    ],
)
def test_refusal_says_what_is_wrong_inside(field, value, clue):
    error = refused(BrokerSettings, **{field: value})
    assert error.field == field
    assert clue in str(error)


def test_two_wrong_fields_are_both_named():
    error = refused(BrokerSettings, port=0, heartbeat=-1)
    assert "BrokerSettings.port" in str(error)
    assert "BrokerSettings.heartbeat" in str(error)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("hartbeat", "heartbeat"),
        ("vhost", "virtual_host"),
        ("connection_timeout", "stack_timeout"),
        ("user", "username"),
    ],
)
def test_unknown_keyword_is_answered_with_the_nearest_one(wrong, meant):
    error = refused(BrokerSettings, **{wrong: 3})
    assert error.field == wrong
    assert f"nearest: {meant}" in str(error)


@pytest.mark.parametrize("also", [{"host": "localhost"}, {"port": 5672}])
def test_hosts_together_with_host_or_port_is_refused(also):
    error = refused(BrokerSettings, hosts=("a", "b"), **also)
    assert error.field == "hosts"
    assert next(iter(also)) in str(error)


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"ca_file": "a", "ca_data": "b"}, "ca_data"),
        ({"key_file": "a"}, "key_file"),
        ({"key_password": SECRET}, "key_password"),
        ({"cert_data": SECRET, "cert_file": "a"}, "cert_data"),
        ({"cert_data": SECRET, "key_file": "a"}, "cert_data"),
        ({"cert_data": b"\xff"}, "cert_data"),
        ({"minimum_version": "SSLv3"}, "minimum_version"),
        ({"verify": False}, "verify"),
        ({"ca_file": ""}, "ca_file"),
    ],
)
def test_tls_settings_that_contradict_themselves_are_refused(keywords, field):
    error = refused(TlsSettings, **keywords)
    assert error.field == field
    assert "TlsSettings" in str(error)
    assert SECRET not in str(error)


@pytest.mark.parametrize("field", ["ca_file", "cert_file"])
def test_missing_pem_file_is_named_before_any_network_io(field, tmp_path):
    path = tmp_path / "nowhere.pem"
    error = refused(BrokerSettings(tls=TlsSettings(**{field: path})).to_pika)
    assert error.field == field
    assert str(path) in str(error)


@pytest.mark.parametrize("field", ["ca_file", "cert_file"])
def test_file_that_is_no_pem_is_refused(field, tmp_path):
    path = tmp_path / "bad.pem"
    path.write_text("not a certificate")
    assert refused(TlsSettings(**{field: path}).make_context).field == field


# --- URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://", BrokerSettings()),
        ("amqp://h", BrokerSettings(host="h")),
        ("amqp://h/", BrokerSettings(host="h")),
        ("AMQP://h:1/%2F", BrokerSettings(host="h", port=1)),
        ("amqp://h/a%2Fb", BrokerSettings(host="h", virtual_host="a/b")),
        ("amqp://ann:p%40s%2Fs@h", BrokerSettings(host="h", username="ann", password="p@s/s")),
        ("amqp://ann:@h", BrokerSettings(host="h", username="ann", password="")),
        ("amqp://ann:a:b@h", BrokerSettings(host="h", username="ann", password="a:b")),
        ("amqp://[::1]:99/v", BrokerSettings(host="::1", port=99, virtual_host="v")),
        ("amqp://a,b:2,[::1]/", BrokerSettings(hosts=("a", "b:2", "::1"))),
        ("amqp://h?heartbeat=3&socket_timeout=", BrokerSettings(host="h", heartbeat=3, socket_timeout=None)),
        ("amqp://h?client_properties=%7B%22a%22%3A1%7D", BrokerSettings(host="h", client_properties={"a": 1})),
        ("amqps://h", BrokerSettings(host="h", tls=TlsSettings())),
        ("amqps://h?ca_file=/x&insecure=true", BrokerSettings(host="h", tls=TlsSettings(ca_file="/x", insecure=True))),
    ],
)
def test_url_gives_the_same_settings_as_keywords(url, expected):
    assert BrokerSettings.from_url(url) == expected


@pytest.mark.parametrize(
    ("url", "clue"),
    [
        ("localhost:5672", "amqp://"),
        ("http://h", "'http'"),
        ("amqp://ann@h", "user without a password"),
        (f"amqp://ann:{SECRET}/x@h", "%2F"),
        (f"amqp://ann:{SECRET}?x@h/", "%3F"),
        (f"amqp://ann:{SECRET}#x@h/", "%23"),
        (f"amqp://ann:{SECRET}%@h/", "%25"),
        (f"amqp://h:{SECRET}", "port"),
        ("amqp://h:99999", "port"),
        ("amqp://h:٣", "port"),
        ("amqp://a,,b", "host"),
        ("amqp://h/a/b", "%2F"),
        ("amqp://h?hartbeat=3", "nearest: heartbeat"),
        ("amqp://h?password=x", "unknown option"),
        ("amqp://h?heartbeat=3&heartbeat=4", "twice"),
        ("amqp://h?heartbeat", "name=value"),
        ("amqp://h?heartbeat=often", "BrokerSettings.heartbeat"),
        ("amqp://h?ca_file=x", "amqps://"),
        ("amqp://h?client_properties=%7B", "JSON"),
        ("amqp://:pw@h", "BrokerSettings.username"),
        ("amqp://h/%FF", "UTF-8"),
        (None, "text"),
    ],
)
def test_url_with_a_mistake_is_refused_with_a_clue(url, clue):
    error = refused(BrokerSettings.from_url, url)
    assert clue in str(error)
    assert SECRET not in str(error)


names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40)
host_names = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{1,5})?", fullmatch=True) | st.ip_addresses().map(
    str
)
ports = st.integers(1, 65535)
seconds = st.floats(0.001, 1e6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
tls_settings = st.builds(
    TlsSettings,
    ca_file=st.none() | names,
    cert_file=names,
    key_file=st.none() | names,
    key_password=st.none() | names,
    server_name=st.none() | names,
    minimum_version=st.sampled_from(["TLSv1.2", "TLSv1.3"]),
    insecure=st.booleans(),
) | st.builds(TlsSettings, cert_data=names, key_password=st.none() | names)


def addresses(draw):
    host, port = draw(host_names), draw(st.none() | ports)
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")


@st.composite
def all_settings(draw):
    where = draw(
        st.fixed_dictionaries({"host": host_names, "port": st.none() | ports})
        | st.just({"hosts": tuple(addresses(draw) for _ in range(draw(st.integers(1, 3))))})
    )
    return BrokerSettings(
        **where,
        virtual_host=draw(names),
        username=draw(names),
        password=draw(names | st.just("")),
        heartbeat=draw(st.none() | st.integers(0, 65535)),
        blocked_connection_timeout=draw(st.none() | seconds),
        connection_attempts=draw(st.integers(1, 99)),
        socket_timeout=draw(st.none() | seconds),
        connect_deadline=draw(seconds),
        frame_max=draw(st.integers(pika.spec.FRAME_MIN_SIZE, 131072)),
        locale=draw(names),
        connection_name=draw(st.none() | names),
        client_properties=draw(st.dictionaries(names, json_values, max_size=3)),
        tcp_options=draw(st.dictionaries(st.just("TCP_KEEPIDLE"), st.integers(0, 99))),
        host_order=draw(st.sampled_from(("given", "shuffled"))),
        tls=draw(st.none() | tls_settings),
    )


@given(all_settings())
def test_settings_come_back_from_their_url(settings):
    assert BrokerSettings.from_url(settings.to_url(mask=False)) == settings


@given(st.text(max_size=40) | st.text(max_size=40).map("amqp://".__add__))
def test_any_text_is_a_url_or_a_configuration_error(text):
    try:
        BrokerSettings.from_url(text)
    except ConfigurationError:
        return
    assert text.strip().lower().startswith(("amqp://", "amqps://"))


def test_function_or_bytes_have_no_url():
    assert refused(BrokerSettings(heartbeat=lambda c, v: v).to_url).field == "heartbeat"
    assert refused(BrokerSettings(client_properties={"a": b"x"}).to_url).field == "client_properties"


# --- environment ------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LABKIT_"):
            monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_url_variable_is_the_base_and_its_parts_win(environment):
    environment(
        LABKIT_URL="amqp://ann:pw@h/v?heartbeat=9",
        LABKIT_HEARTBEAT="3",
        LABKIT_HOSTS="a,b:2",
        LABKIT_TLS_CA_FILE="/x",
        LABKIT_CLIENT_PROPERTIES='{"a": 1}',
        LABKIT_CONNECTION_NAME="",
        LABKIT_BROKER="auto",
        LABKIT_REQUIRE="compose",
    )
    assert BrokerSettings.from_env() == BrokerSettings(
        username="ann",
        password="pw",
        virtual_host="v",
        heartbeat=3,
        hosts=("a", "b:2"),
        client_properties={"a": 1},
        tls=TlsSettings(ca_file="/x"),
    )


def test_no_variable_gives_the_defaults(environment):
    assert BrokerSettings.from_env() == BrokerSettings()


def test_another_prefix_reads_other_variables(environment):
    environment(LABKIT_HOST="a", SHOP_HOST="b")
    assert BrokerSettings.from_env(prefix="SHOP_").host == "b"


@pytest.mark.parametrize(("text", "tls"), [("true", TlsSettings()), ("0", None)])
def test_tls_variable_is_a_switch(environment, text, tls):
    environment(LABKIT_TLS=text)
    assert BrokerSettings.from_env().tls == tls


@pytest.mark.parametrize(
    ("name", "text", "clue"),
    [
        ("LABKIT_PORT", "x", "LABKIT_PORT: "),
        ("LABKIT_URL", "nonsense", "LABKIT_URL: "),
        ("LABKIT_TLS", "perhaps", "LABKIT_TLS: "),
        ("LABKIT_TLS_MINIMUM_VERSION", "SSLv3", "LABKIT_TLS_MINIMUM_VERSION: "),
        ("LABKIT_HEARBEAT", "3", "nearest: LABKIT_HEARTBEAT"),
    ],
)
def test_wrong_variable_is_named(environment, name, text, clue):
    environment(**{name: text})
    assert clue in str(refused(BrokerSettings.from_env))


# --- secrets ----------------------------------------------------------------------------------------------------


def test_secret_is_in_no_text_of_the_settings(caplog):
    settings = BrokerSettings(password=SECRET, tls=TlsSettings(cert_data=SECRET, key_password=SECRET))
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").info("settings: %s %r", settings, settings)
    texts = [repr(settings), str(settings), f"{settings}", settings.to_url(), str(settings.model_dump()), caplog.text]
    texts += [settings.model_dump_json(), repr(settings.to_pika)]
    assert not [text for text in texts if SECRET in text]
    assert settings.to_url(mask=False).count(SECRET) == 3


@pytest.mark.parametrize(
    "build",
    [
        lambda: BrokerSettings(password=SECRET, port=0),
        lambda: BrokerSettings(password=f"{SECRET}\0"),
        lambda: BrokerSettings(passwort=SECRET),
        lambda: BrokerSettings(password=[SECRET]),
        lambda: BrokerSettings(host=f"amqp://ann:{SECRET}@h"),
        lambda: BrokerSettings(host=f"ann:{SECRET}"),
        lambda: BrokerSettings(hosts=(f"ann:{SECRET}@h", "b")),
        lambda: BrokerSettings(tls={"cert_file": "c", "key_pass": SECRET}),
        lambda: BrokerSettings.from_url(f"amqp://ann:{SECRET}@h:x"),
        lambda: BrokerSettings.from_url(f"amqp://ann:{SECRET}@h?heartbeat=x"),
        lambda: BrokerSettings.from_url(f"amqp://ann:{SECRET}@[h"),
        lambda: BrokerSettings.from_url(f"amqp://ann:{SECRET}@h h"),
        lambda: BrokerSettings(password=SECRET).replace(port=0),
    ],
)
def test_secret_is_in_no_traceback(build):
    with pytest.raises(LabkitError) as caught:
        build()
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, LabkitError)
    assert SECRET not in repr(vars(caught.value))


@pytest.mark.parametrize("use", [TlsSettings.make_context, TlsSettings.certificate])
def test_key_that_cannot_be_used_is_in_no_traceback(use):
    with pytest.raises(ConfigurationError) as caught:
        use(TlsSettings(cert_data=f"-----BEGIN PRIVATE KEY-----\n{SECRET}"))
    assert caught.value.field == "cert_data"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_repr_shows_no_port_and_no_address():
    text = repr(BrokerSettings(hosts=("a:5673", "b:5674"), heartbeat=lambda c, v: v))
    assert "5673" not in text
    assert "0x" not in text
    assert "5679" not in repr(BrokerSettings(port=5679))
