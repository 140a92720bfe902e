"""Settings that ask a function for user name and password: what it may be and return, and that nothing shows."""

import functools

import pika
import pytest

from labkit import BrokerSettings, ConfigurationError, TlsSettings

SECRET = "ins-secret-71"


def vault():
    return "lab", SECRET


def test_the_function_is_asked_for_what_pika_gets():
    (parameters,) = BrokerSettings(credentials=vault).to_pika()
    assert parameters.credentials == pika.PlainCredentials("lab", SECRET)


def test_without_a_function_it_is_user_name_and_password():
    assert BrokerSettings(password="x").ask_credentials() == pika.PlainCredentials("guest", "x")


@pytest.mark.parametrize("function", [vault, functools.partial(lambda login: login, ("lab", SECRET))])
def test_nothing_that_is_shown_holds_the_secret(function):
    settings = BrokerSettings(credentials=function)
    settings.ask_credentials()
    assert repr(settings) == "BrokerSettings(host='localhost', virtual_host='/', credentials=...)"
    with pytest.raises(ConfigurationError, match="credentials") as caught:
        settings.to_url()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [("lab", SECRET), SECRET, 1])
def test_what_is_no_function_is_refused_and_not_shown(value):
    with pytest.raises(ConfigurationError, match="returns \\(user name, password\\)") as caught:
        BrokerSettings(credentials=value)
    assert caught.value.field == "credentials"
    assert caught.value.value is None
    assert SECRET not in str(caught.value)


def test_a_coroutine_function_is_refused():
    async def ask():
        return "lab", SECRET

    with pytest.raises(ConfigurationError, match="a coroutine function"):
        BrokerSettings(credentials=ask)


def test_a_function_beside_a_certificate_that_says_who_we_are_is_refused():
    with pytest.raises(ConfigurationError, match="EXTERNAL"):
        BrokerSettings(credentials=vault, auth_mechanism="EXTERNAL", tls=TlsSettings(cert_file="a.pem"))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        SECRET,
        (SECRET,),
        ("", SECRET),
        ("lab", None),
        ("lab", SECRET + "\0"),
        {"lab": SECRET},
        ("a" * 256, SECRET),
    ],
)
def test_what_is_no_login_is_refused_and_not_shown(answer):
    with pytest.raises(ConfigurationError, match=r"what the function returned \(not shown\)") as caught:
        BrokerSettings(credentials=lambda: answer).ask_credentials()
    assert SECRET not in str(caught.value)


def test_what_the_function_raises_is_an_error_that_may_pass_and_repeats_none_of_its_words():
    def fails():
        raise KeyError(SECRET)

    with pytest.raises(OSError, match=r"^credentials: the function raised KeyError$") as caught:
        BrokerSettings(credentials=fails).ask_credentials()
    assert isinstance(caught.value.__cause__, KeyError)
