"""Which endpoint is called."""

import pytest

from labkit import ConfigurationError
from labkit.rpc import NoSuchMethod, Target, UnsupportedVersion
from labkit.rpc.dispatcher import Dispatcher
from labkit.rpc.envelope import Request


class Old:
    target = Target(version="1.3")
    answer = "not a method"

    def name(self, ctxt):
        return "old"

    def _hidden(self, ctxt):
        return "hidden"


class New:
    target = Target(version="2.1")

    def name(self, ctxt, suffix=""):
        return f"new{suffix}"


class Spaced:
    target = Target(namespace="space", legacy_namespaces=["older"], version="1.0")

    def name(self, ctxt):
        return ctxt["user"]


def ask(method="name", **fields):
    return Dispatcher([Old(), New(), Spaced()]).dispatch(
        Request(method, fields.pop("args", {}), {"user": "ann"}, **fields)
    )


def test_the_first_endpoint_whose_namespace_and_version_fit_is_called():
    assert ask() == "old"
    assert ask(version="1.2") == "old"
    assert ask(version="2.0", args={"suffix": "!"}) == "new!"
    assert ask(namespace="space") == ask(namespace="older") == "ann"


@pytest.mark.parametrize("fields", [{"version": "1.4"}, {"version": "3.0"}, {"namespace": "nowhere"}])
def test_when_none_fits_the_version_is_unsupported(fields):
    with pytest.raises(UnsupportedVersion):
        ask(**fields)


@pytest.mark.parametrize("method", ["nothing", "_hidden", "answer", "__class__", "__init__"])
def test_only_public_methods_are_called(method):
    with pytest.raises(NoSuchMethod):
        ask(method)


def test_a_target_that_is_none_is_refused():
    class Odd:
        target = "1.0"

    with pytest.raises(ConfigurationError, match="Odd"):
        Dispatcher([Odd()])


def test_a_coroutine_function_is_not_called_as_nobody_would_await_it():
    class Awaited:
        async def work(self, ctxt):
            """Would have to be awaited."""

    with pytest.raises(ConfigurationError, match="work: a coroutine function is not allowed"):
        Dispatcher([Awaited()]).dispatch(Request("work", {}, {}))
