"""What an extra installs is imported on first use, and a missing one is named. No broker."""

import subprocess
import sys
import threading

import pytest

from labkit import BrokerSettings, ConfigurationError, ConnectionFactory, MissingExtra
from labkit.extras import extra
from labkit.integrations.scheduling import run_schedule

BLOCKED = """
import sys
import threading
sys.modules[{package!r}] = None  # so that importing it fails, as where it is not installed
import labkit
try:
    labkit.ConnectionFactory(labkit.BrokerSettings()).{adapter}()
except labkit.MissingExtra as error:
    print(error.extra, error.package, error)
"""


@pytest.mark.parametrize(
    ("adapter", "package"), [("tornado", "tornado"), ("gevent", "gevent"), ("libev", "gevent"), ("twisted", "twisted")]
)
def test_a_missing_extra_is_named_with_what_to_install(adapter, package):
    code = BLOCKED.format(package=package, adapter=adapter)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(f"{package} {package} "), done.stderr
    assert f"pip install 'labkit-rabbitmq[{package}]'" in done.stdout


def test_importing_labkit_imports_no_event_loop_package():
    code = "import labkit, sys; print([each for each in ('tornado', 'gevent', 'twisted') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_broken_part_of_ours_is_not_taken_for_a_missing_extra():
    with pytest.raises(ModuleNotFoundError) as caught:
        extra("gevent", "labkit.not_there")
    assert type(caught.value) is ModuleNotFoundError


def test_a_callback_with_a_typo_is_refused():
    with pytest.raises(TypeError, match="on_opn_callback"):
        ConnectionFactory(BrokerSettings()).select(on_opn_callback=print)


def test_a_callback_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigurationError, match="cannot be called"):
        ConnectionFactory(BrokerSettings()).select(on_open_error_callback="print")


@pytest.mark.parametrize(("module", "extra"), [("flask", "flask"), ("fastapi", "fastapi")])
def test_an_integration_names_its_extra(module, extra):
    code = (
        (
            "import sys; sys.modules[NAME] = None\nimport labkit\n"
            "try:\n    import labkit.integrations.NAME\n"
            "except labkit.MissingExtra as error:\n    print(error.extra, error.package)"
        )
        .replace("[NAME]", f"[{module!r}]")
        .replace("NAME", module)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{extra} {module}\n", done.stderr


def test_a_flask_application_without_the_extra_metrics_has_no_such_page_and_is_well():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from flask import Flask\nfrom labkit.integrations.flask import RabbitMQ\n"
        "app = Flask('shop'); app.config['LABKIT_URL'] = 'amqp://localhost'; RabbitMQ(app)\n"
        "print(*(app.test_client().get(path).status_code for path in ('/metrics', '/healthz')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "404 200\n", done.stderr


def test_the_loop_of_schedule_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedule", None)
    with pytest.raises(MissingExtra, match=r"labkit-rabbitmq\[scheduling\]"):
        run_schedule(threading.Event())


# gevent's modules import each other: begun from two ends at once, Python 3.14 ends one import with "deadlock detected".
AT_ONCE = """
import threading
from labkit.connector.libev import LibevLoop
from labkit.extras import extra

def adapter():
    extra("gevent", "pika.adapters.gevent_connection")
    hub = extra("gevent", "gevent").get_hub()
    return hub.loop, hub.resolver, hub.threadpool

def need(what):
    at_once.wait(20)
    try:
        what()
    except BaseException as error:
        failed.append(repr(error))

failed, at_once = [], threading.Barrier(4)
threads = [threading.Thread(target=need, args=[what]) for what in (LibevLoop, adapter) * 2]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(failed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gevent's wheels hold no libev there")
def test_threads_that_need_gevent_for_the_first_time_at_once_all_get_it():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.strip() == "[]", done.stdout + done.stderr
