"""The wheel without its extras: what is in it, what it imports, and what the command says then."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.whl")
    return built


def needed(name: str, seen: dict[str, importlib.metadata.Distribution]) -> dict[str, importlib.metadata.Distribution]:
    """Return the distributions that installing *name* without extras brings, from what is installed here."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key not in seen:
        seen[key] = importlib.metadata.distribution(name)
        for requirement in seen[key].requires or []:
            if "extra" not in requirement.partition(";")[2]:
                needed(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0], seen)
    return seen


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages as `pip install labkit-rabbitmq` leaves it: the wheel, and what it depends on."""
    place = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    bare = [line.split(":", 1)[1] for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    names = sorted(re.split(r"[^A-Za-z0-9._-]", each.strip(), maxsplit=1)[0] for each in bare)
    assert names == ["pika", "pydantic-settings"]
    seen: dict[str, importlib.metadata.Distribution] = {}
    for name in names:
        needed(name, seen)
    for distribution in seen.values():
        tops = {file.parts[0] for file in distribution.files or [] if not file.parts[0].startswith((".", "__"))}
        for top in tops:
            (place / top).symlink_to(Path(str(distribution.locate_file(top))))
    return place


def run(site: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run *code* in a Python that sees the standard library and *site*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LABKIT"))}
    return subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code, *arguments],
        cwd=site.parent, env={**kept, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_wheel_holds_the_types_marker_the_compose_file_and_the_image_and_no_test(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    images = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "labkit/brokers/images").rglob("*") if path.is_file()
    }
    images = {name for name in images if "__pycache__" not in name}
    assert len(images) > 3
    assert images | {"labkit/py.typed", "labkit/brokers/docker-compose.yml"} <= names
    assert {f"labkit/monitor/prometheus/labkit-{each}" for each in ("alerts.yml", "dashboard.json")} <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"labkit", "labkit_rabbitmq"}


def test_the_wheels_compose_file_is_the_checkouts(wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel).read("labkit/brokers/docker-compose.yml")
    assert inside == (ROOT / "docker-compose.yml").read_bytes()


def test_without_extras_it_imports_and_every_public_name_is_there(site: Path) -> None:
    done = run(site, "import labkit; print(labkit.__file__); [getattr(labkit, name) for name in labkit.__all__]")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).parent == site / "labkit"


def test_without_extras_settings_work(site: Path) -> None:
    done = run(site, "from labkit import BrokerSettings; print(BrokerSettings(port=5673).to_url())")
    assert (done.returncode, done.stderr) == (0, "")
    assert ":5673" in done.stdout


def test_without_extras_the_command_says_what_to_install(site: Path) -> None:
    (script,) = site.glob("labkit_rabbitmq-*.dist-info/entry_points.txt")
    assert "labkit = labkit.cli:main" in script.read_text()
    done = run(site, "from labkit.cli import main; main()", "doctor")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "labkit-rabbitmq[lab]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("part", "extra"), [("wire", "wire"), ("brokers", "brokers"), ("trials", "brokers"), ("lab", "lab")]
)
def test_without_extras_each_part_says_what_to_install(site: Path, part: str, extra: str) -> None:
    done = run(site, f"from labkit.{part} import *")
    assert done.returncode == 1
    assert f"labkit-rabbitmq[{extra}]" in done.stderr.splitlines()[-1]


def test_without_extras_errors_are_explained(site: Path) -> None:
    done = run(site, "from labkit.diagnosis import explain; print(explain(ConnectionRefusedError()))")
    assert (done.returncode, done.stderr) == (0, "")
