"""Whichever way one goes into a settings object: it is checked, nothing changes in place, and no secret is repeated."""

import copy
import json
import pickle
import sys
import traceback

import pydantic
import pytest

from labkit import BrokerSettings, ConfigurationError, TlsSettings

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")

SECRET = "s3cret-p4ss"
SETTINGS = BrokerSettings(host="mq", password=SECRET, client_properties={"a": [1]})


def refused(function, *args, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        function(*args, **kwargs)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (BrokerSettings(), "password", SECRET),
        (BrokerSettings(), "host", f"user:{SECRET}@mq"),
        (BrokerSettings(), "hartbeat", SECRET),
        (BrokerSettings(), "model_config", {}),
        (TlsSettings(cert_data="PEM"), "key_password", SECRET),
    ],
)
def test_assignment_says_what_to_do_instead_and_not_what_was_assigned(settings, field, value):
    before = repr(settings)
    error = refused(setattr, settings, field, value)
    assert error.field == field
    assert error.value is None
    assert "replace" in str(error)
    assert "frozen" in str(error)
    assert repr(settings) == before


@pytest.mark.parametrize("field", ["password", "host", "nothing"])
def test_nothing_can_be_deleted(field):
    assert refused(delattr, SETTINGS, field).field == field
    assert SETTINGS.host == "mq"


COPIES = {
    "replace": lambda settings, **changes: settings.replace(**changes),
    "model_copy": lambda settings, **changes: settings.model_copy(update=changes),
    "deep model_copy": lambda settings, **changes: settings.model_copy(update=changes, deep=True),
    "copy": lambda settings, **changes: settings.copy(update=changes),
}
if sys.version_info >= (3, 13):
    COPIES["copy.replace"] = copy.replace


@pytest.mark.parametrize("changed", COPIES.values(), ids=COPIES)
def test_a_copy_with_changes_is_checked_like_a_new_one(changed):
    assert changed(SETTINGS, heartbeat=7) == BrokerSettings(
        host="mq", password=SECRET, client_properties={"a": [1]}, heartbeat=7
    )
    assert refused(changed, SETTINGS, port=99999).field == "port"
    assert refused(changed, SETTINGS, password=SECRET + "\0").field == "password"
    assert refused(changed, SETTINGS, hartbeat=SECRET).field == "hartbeat"
    assert changed(BrokerSettings(hosts="a,b"), host="c").addresses == (("c", 5672),)


@pytest.mark.parametrize(
    "same",
    [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), lambda each: each.model_copy()],
    ids=["copy", "deepcopy", "pickle", "model_copy"],
)
def test_a_copy_without_changes_is_equal(same):
    assert same(SETTINGS) == SETTINGS
    assert same(BrokerSettings(tls=TlsSettings(ca_file="x"), hosts=("a", "b"))).addresses == (("a", 5671), ("b", 5671))


MADE = {
    "constructor": lambda values: BrokerSettings(**values),
    "model_construct": lambda values: BrokerSettings.model_construct(**values),
    "model_validate": BrokerSettings.model_validate,
    "model_validate_json": lambda values: BrokerSettings.model_validate_json(json.dumps(values)),
    "model_validate_json of bytes": lambda values: BrokerSettings.model_validate_json(json.dumps(values).encode()),
    "model_validate_strings": lambda values: BrokerSettings.model_validate_strings(
        {name: str(value) for name, value in values.items()}
    ),
    "parse_obj": BrokerSettings.parse_obj,
    "parse_raw": lambda values: BrokerSettings.parse_raw(json.dumps(values)),
    "construct": lambda values: BrokerSettings.construct(**values),
    "validate": BrokerSettings.validate,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_whatever_makes_settings_checks_them(make):
    assert make({"host": "mq", "port": 5673}) == BrokerSettings(host="mq", port=5673)
    assert refused(make, {"port": 99999}).field == "port"
    assert refused(make, {"password": SECRET + "\0"}).field == "password"
    assert refused(make, {"hosts": "a,b", "port": 5}).field == "hosts"


@pytest.mark.parametrize("given", [3, None, SECRET, [("host", SECRET)], pydantic.SecretStr(SECRET)])
def test_what_holds_no_settings_is_refused(given):
    assert "mapping" in str(refused(BrokerSettings.model_validate, given))
    assert BrokerSettings.model_validate(SETTINGS) is SETTINGS
    for text in (SECRET, "[1]", b"\xff", 3):
        assert "JSON" in str(refused(BrokerSettings.model_validate_json, text))


@pytest.mark.parametrize("private", ["_env_file", "_cli_parse_args", "_secrets_dir", "_case_sensitive", "_nothing"])
def test_a_keyword_of_pydantics_own_is_an_unknown_one(private):
    assert refused(BrokerSettings, **{private: True}).field == private


def test_settings_in_a_model_of_the_users_are_checked_there():
    class Service(pydantic.BaseModel):
        broker: BrokerSettings

    assert Service(broker={"host": "mq"}).broker == BrokerSettings(host="mq")
    assert Service(broker=SETTINGS).broker is SETTINGS
    with pytest.raises(pydantic.ValidationError, match=r"BrokerSettings\.port: 99999 is not allowed"):
        Service(broker={"port": 99999})
