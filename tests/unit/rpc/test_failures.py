"""An exception crosses the wire as text, and only listed modules are imported to restore it."""

import builtins
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import LabkitError, RemoteError, classify
from labkit.rpc import NoSuchMethod, TransientQueuesForbidden, UnsupportedVersion
from labkit.rpc.failures import BadMessage, pack_failure, unpack_failure


class OverdrawnError(Exception):
    def __init__(self, account, *, by=0):
        super().__init__(account)
        self.kwargs = {"by": by}
        self.by = by


class OddError(Exception):
    def __str__(self):
        raise RuntimeError


def raised(error):
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_failure_has_class_module_text_traceback_and_arguments():
    facts = json.loads(pack_failure(raised(OverdrawnError("ann", by=7))))
    assert facts["class"] == "OverdrawnError"
    assert facts["module"] == __name__
    assert facts["message"] == "ann"
    assert facts["args"] == ["ann"]
    assert facts["kwargs"] == {"by": 7}
    assert facts["tb"][0].startswith("Traceback")


def test_a_listed_class_is_restored_with_the_far_traceback_in_its_text():
    error = unpack_failure(pack_failure(raised(OverdrawnError("ann", by=7))), [__name__])
    assert isinstance(error, OverdrawnError)
    assert error.by == 7
    assert (type(error).__name__, type(error).__module__) == ("OverdrawnError_Remote", f"{__name__}_Remote")
    assert "Traceback" in str(error)


def test_a_restored_one_that_goes_on_loses_the_suffix():
    error = unpack_failure(pack_failure(raised(OverdrawnError("ann"))), [__name__])
    facts = json.loads(pack_failure(error))
    assert (facts["class"], facts["module"]) == ("OverdrawnError", __name__)


def test_a_builtin_is_restored_with_the_traceback_in_its_first_argument():
    error = unpack_failure(pack_failure(raised(KeyError("x"))))
    assert type(error) is KeyError
    assert "Traceback" in error.args[0]
    assert isinstance(unpack_failure('{"class": "ValueError", "module": "exceptions"}'), ValueError)


def test_an_unlisted_module_is_not_imported():
    sys.modules.pop("this", None)
    error = unpack_failure('{"class": "Zen", "module": "this", "message": "no", "tb": ["a", "b"]}')
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.text, error.traceback) == ("Zen", "no", "ab")
    assert "this" not in sys.modules


@pytest.mark.parametrize("name", ["eval", "exit", "SystemExit", "KeyboardInterrupt", "__import__", "no_such", "object"])
def test_of_a_listed_module_only_exceptions_are_built(name):
    facts = {"class": name, "module": "builtins", "message": "", "args": ["1"], "kwargs": {}}
    assert type(unpack_failure(json.dumps(facts))) is RemoteError


def test_the_server_s_own_errors_are_restored_whoever_serves():
    error = unpack_failure(pack_failure(NoSuchMethod("add")))
    assert isinstance(error, NoSuchMethod)
    assert error.method == "add"
    error = unpack_failure(pack_failure(UnsupportedVersion("2.0", "add")))
    assert isinstance(error, UnsupportedVersion)
    assert (error.version, error.method) == ("2.0", "add")
    assert json.loads(pack_failure(NoSuchMethod("add")))["module"] == "oslo_messaging.rpc.dispatcher"


def test_an_odd_exception_is_packed_all_the_same():
    odd = OddError(object())
    facts = json.loads(pack_failure(odd))
    assert facts["class"] == "OddError"
    assert facts["message"].startswith("<OddError")
    assert facts["args"][0].startswith("<object")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"class": 7}', "[" * 100_000])
def test_what_is_no_failure_is_a_bad_message(text):
    with pytest.raises(BadMessage):
        unpack_failure(text)


ANY = st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2) | st.dictionaries(st.text(), st.text())


@given(
    facts=st.fixed_dictionaries(
        {"class": st.sampled_from(sorted(vars(builtins))) | st.text(), "module": st.sampled_from(["builtins", "this"])},
        optional={"message": ANY, "tb": ANY, "args": ANY, "kwargs": ANY},
    )
)
def test_whatever_a_failure_says_an_exception_comes_of_it_and_nothing_is_imported(facts):
    before = set(sys.modules)
    error = unpack_failure(json.dumps(facts))
    assert isinstance(error, Exception)
    assert set(sys.modules) == before


def test_every_error_of_the_package_is_labkit_s_and_has_a_verdict():
    error = TransientQueuesForbidden("reply_x", ("rabbit_quorum_queue",))
    assert isinstance(error, LabkitError)
    assert "rabbit_quorum_queue=True" in str(error)
    assert not classify(error).is_retryable
    assert not classify(NoSuchMethod("x")).is_retryable
