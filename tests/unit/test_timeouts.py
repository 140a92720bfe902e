"""Every ``timeout`` and ``deadline`` of the public signatures is in docs/timeouts.md and in its docstring."""

import inspect
import re
from pathlib import Path

import labkit
from labkit import rpc
from labkit.integrations import fastapi, flask, scheduling

PAGE = Path(__file__).parents[2] / "docs" / "timeouts.md"
NAMES = ("timeout", "deadline")
PUBLIC = {
    **{name: getattr(labkit, name) for name in labkit.__all__},
    "flask.RabbitMQ": flask.RabbitMQ,
    "scheduling.PublisherJob": scheduling.PublisherJob,
    "fastapi.RabbitMQ": fastapi.RabbitMQ,
    **{f"rpc.{name}": getattr(rpc, name) for name in ("NotificationListener", "RPCClient", "RPCServer", "Transport")},
}


def limits():
    """Yield the name, the object and the parameter of every limit that a caller of the public API can set."""
    for name, thing in PUBLIC.items():
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            calls = {f"{name}.{each}": value for each, value in inspect.getmembers(thing, callable) if each[0] != "_"}
            if thing not in (labkit.Channel, labkit.PoolStats):  # made by connection.channel() and pool.stats()
                calls[name] = thing
        elif inspect.isfunction(thing):
            calls = {name: thing}
        else:
            continue
        for called, function in calls.items():
            for parameter in inspect.signature(function).parameters.values():
                if parameter.name.endswith(NAMES):
                    yield called, function, parameter


def test_the_page_has_a_row_for_each_with_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+)` \| (\S+) \| \S", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 40
    assert sorted(rows) == sorted(
        (name, each.name, "required" if each.default is inspect.Parameter.empty else str(each.default))
        for name, _, each in limits()
    )


def test_each_docstring_says_what_is_limited():
    silent = []
    for name, function, parameter in limits():
        owner = PUBLIC.get(name) or PUBLIC[name.rpartition(".")[0]]
        text = f"{inspect.getdoc(function)}\n{inspect.getdoc(owner)}"
        fields = getattr(owner, "model_fields", {})
        if parameter.name not in text and "seconds" not in str(getattr(fields.get(parameter.name), "description", "")):
            silent.append(f"{name}({parameter.name}=)")
    assert silent == []
