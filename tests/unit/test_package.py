import pkgutil
import subprocess
import sys
import types

import pytest

import labkit
from labkit.lab import server

HEAVY = [
    "docker",
    "ipywidgets",
    "gevent",
    "twisted",
    "tornado",
    "flask",
    "httpx",
    "IPython",
    "pamqp",
    "trustme",
    "typer",
]


def modules():
    return [name for _, name, _ in pkgutil.iter_modules(labkit.__path__)]


def test_all_is_what_is_exported():
    public = {
        name
        for name, value in vars(labkit).items()
        if not name.startswith("_") and not (isinstance(value, types.ModuleType) and name != "errors")
    }
    assert sorted(labkit.__all__) == sorted((public | {"errors"}) - {"logging"})
    assert len(labkit.__all__) == len(set(labkit.__all__))


def test_import_needs_no_broker_widget_or_event_loop_package():
    code = f"import sys, labkit; print(sorted(set({HEAVY!r}) & set(sys.modules)), 'labkit.lab' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[] False", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wire", "brokers", "trials", "diagnosis"])
def test_an_instrument_needs_neither_jupyter_nor_the_command_nor_the_classroom(name):
    classroom = ["IPython", "ipykernel", "ipywidgets", "jupyterlab", "nbclient", "nbformat", "rich", "typer"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({classroom!r})); import labkit.{name}; "
        "print('labkit.lab' in sys.modules, labkit.NAME.__all__ != [])".replace("NAME", name)
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("False True", "")


@pytest.mark.slow
def test_the_command_waits_for_nothing_that_one_of_its_verbs_alone_needs():
    late = ["docker", "httpx", "ipywidgets", "jsonschema", "labkit.lab.bench", "nbformat", "pamqp", "requests", "rich"]
    code = f"import sys, labkit.lab.commands; print([name for name in {late!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import sys; from labkit.lab.notebook_file import nbformat; nbformat().v4",
        server.LAUNCH.partition("; sys.exit")[0],
    ],
)
def test_neither_our_notebooks_nor_jupyterlab_wait_for_the_grammars_of_international_addresses(code):
    code += "; print('jsonschema' in sys.modules, 'lark' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("True False", "")


def test_no_module_shares_a_name_with_a_public_attribute_beside_it():
    assert len(modules()) > 8
    shared = [name for name in modules() if name in labkit.__all__ and name != "errors"]
    assert shared == []
    assert isinstance(labkit.errors, types.ModuleType)
