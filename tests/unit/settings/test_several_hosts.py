"""Several hosts: read only where they are written as several, and none of them is dropped without a word."""

import pytest

from labkit import BrokerSettings, ConfigurationError

SECRET = "s3cret-p4ss"
LOGIN = f"user:{SECRET}"


def refused(function, *args, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        function(*args, **kwargs)
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "hosts",
    [
        f"{LOGIN}@h1:5672,{LOGIN}@h2:5672",
        f"{LOGIN}@h1,{LOGIN}@h2",
        f"{LOGIN}@h1;{LOGIN}@h2",
        f"{LOGIN}@h1,{LOGIN}@h2,{LOGIN}@h3",
        f"{LOGIN}@[::1]:5672,{LOGIN}@[::2]:5672",
        f"user:a,b@{SECRET},c@h",  # a password with an @ in it looks the same, and is to be encoded
    ],
)
@pytest.mark.parametrize("form", ["amqp://{}", "amqp://{}/v", "amqps://{}/v?heartbeat=3"])
def test_a_login_for_each_host_is_refused_and_said_how_to_write(hosts, form):
    error = refused(BrokerSettings.from_url, form.format(hosts))
    assert error.field == "hosts"
    assert "a login for each host" in str(error)
    assert "user:password@host,host" in str(error)


def test_one_login_in_front_of_several_hosts_is_for_all_of_them():
    settings = BrokerSettings.from_url(f"amqp://{LOGIN}@h1,h2:5673/v")
    assert settings.addresses == (("h1", 5672), ("h2", 5673))
    assert settings.password.get_secret_value() == SECRET


@pytest.mark.parametrize("text", ["h1;h2", "h1:1;h2:2", ";", "h1;"])
def test_a_semicolon_separates_no_hosts(text):
    assert "commas" in str(refused(BrokerSettings.from_url, f"amqp://{text}"))
    assert "commas" in str(refused(BrokerSettings, hosts=text))
    assert "commas" in str(refused(BrokerSettings, hosts=[text, "b"]))
    assert "hosts=" in str(refused(BrokerSettings, host=text))


def test_several_hosts_as_one_are_refused_with_the_field_that_takes_them():
    error = refused(BrokerSettings, host="h1,h2")
    assert error.field == "host"
    assert "hosts=" in str(error)


@pytest.mark.parametrize("port", [5673, "5673", 0])
def test_a_new_port_for_several_hosts_is_refused_and_drops_none(port):
    several = BrokerSettings(hosts="a,b:1,c")
    error = refused(several.replace, port=port)
    assert error.field == "port"
    assert "3 hosts" in str(error)
    assert "hosts=" in error.allowed
    assert several.replace(port=None) == several
    assert several.replace(host="d", port=5673).addresses == (("d", 5673),)
    assert several.replace(hosts=("a:5673", "b")).addresses == (("a", 5673), ("b", 5672))


def test_a_port_variable_beside_several_hosts_is_named(monkeypatch):
    monkeypatch.setenv("LABKIT_URL", "amqp://a,b,c")
    monkeypatch.setenv("LABKIT_PORT", "5673")
    assert "LABKIT_PORT" in str(refused(BrokerSettings.from_env))


@pytest.mark.parametrize("hosts", [b"a,b", {"a", "b"}, {"a": 1}, 3, True, iter(["a"]), ("a", b"b"), ["a", None]])
def test_hosts_are_text_or_a_list_of_text_whose_order_means_something(hosts):
    assert refused(BrokerSettings, hosts=hosts).field == "hosts"


def test_a_url_of_another_scheme_is_refused_by_its_scheme():
    assert "'rabbit'" in str(refused(BrokerSettings.from_url, f"rabbit://{LOGIN}@h1:5672,{LOGIN}@h2:5672//"))
