"""Any URL is read or refused: never with another error, and never with a secret in the text."""

import contextlib
import os
import traceback
from unittest import mock

from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from labkit import BrokerSettings, ConfigurationError, TlsSettings

SECRET = "s3cret-p4ss"
PART = st.text(max_size=8) | st.sampled_from(
    ["", "h", "h:5672", "h:0", "h:99999", "::1", "[::1]", "[::1]:1", "[", "a b", "é", "%", "%2", "%ff", "%00", "%2F",
     "\udce9", "x" * 300, ",", ";", "@", "/", "?", "#", "&", "=", "+", "-1", "1e400", "nan", "true", "None", "{}",
     '{"a":1}', "[" * 2000]
)  # fmt: skip
OPTION = st.sampled_from([*BrokerSettings.model_fields, *TlsSettings.model_fields, "", "vhost", "x"]) | PART


@st.composite
def urls(draw) -> str:
    """Made like a URL, with anything for its parts; each password is the secret."""
    scheme = draw(st.sampled_from(["amqp://", "amqps://", "AMQP://", "amqp:/", "http://", ""]) | PART)
    logins = [f"{draw(PART)}:{SECRET}{draw(PART)}@", "", f":{SECRET}@", f"{draw(PART)}:{SECRET}@"]
    separator = st.sampled_from([",", ";", "/", "@"])
    hosts = "".join(
        f"{draw(st.sampled_from(logins))}{draw(PART)}{draw(separator) if draw(st.booleans()) else ''}"
        for _ in range(draw(st.integers(0, 3)))
    )
    query = "&".join(f"{draw(OPTION)}={draw(PART)}" for _ in range(draw(st.integers(0, 3))))
    return f"{scheme}{hosts}{draw(st.sampled_from(['', '/']))}{draw(PART)}{draw(st.sampled_from(['', '?']))}{query}"


def check_url(url):
    """It is read, with its secret shown nowhere, or refused without it."""
    problem = None
    try:
        settings = BrokerSettings.from_url(url)
    except ConfigurationError as exc:
        problem = exc
    if problem is not None:
        assert problem.field
        assert SECRET not in "".join(traceback.format_exception(problem))
    else:
        assert SECRET not in repr(settings)
        assert SECRET not in settings.to_url()
        assert settings.addresses
        assert BrokerSettings.from_url(settings.to_url(mask=False)) == settings


@given(urls())
@example(f"amqp://u:{SECRET}@h1,u:{SECRET}@h2/")
@example(f"amqp://u:{SECRET}/x@h/")
@example(f"amqp://u:{SECRET}?x@h/")
@example(f"amqp://u:{SECRET}#x@h/")
@example(f"amqp://u:{SECRET}@h/?password={SECRET}")
@example(f"amqps://h/?key_password={SECRET}")
@example(f"amqps://h/?cert_data={SECRET}&ca_data=%00")
@examples(max_examples=300, suppress_health_check=list(HealthCheck))
def test_any_url_is_read_or_refused_without_its_password(url):
    check_url(url)


@given(st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.text()), st.just(BrokerSettings())))
def test_what_is_no_text_is_no_url(value):
    try:
        BrokerSettings.from_url(value)
    except ConfigurationError as exc:
        problem = exc
    assert problem.field == "url"


@given(
    st.dictionaries(st.sampled_from([*BrokerSettings.model_fields, "tls_ca_file", "url", "vhost"]), PART, max_size=4)
)
@examples(max_examples=150, suppress_health_check=list(HealthCheck))
def test_any_environment_is_read_or_refused(environment):
    variables = {
        f"LABKIT_{name.upper()}": text
        for name, text in environment.items()
        if "\0" not in text and "\udce9" not in text  # which no environment can hold
    }
    with mock.patch.dict(os.environ, variables), contextlib.suppress(ConfigurationError):
        assert BrokerSettings.from_env()
