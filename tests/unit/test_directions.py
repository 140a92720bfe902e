"""Imports point one way: what each part of labkit may import, and which files may touch Pika."""

import ast
import re
from pathlib import Path

import pytest

import labkit

PACKAGE = Path(labkit.__file__).parent

VOCABULARY = {
    "concurrency",
    "content",
    "errors",
    "event_log",
    "events",
    "extras",
    "printable",
    "retry",
    "topology",
    "validation",
    "values",
    "verdicts",
    "version",
    "watched",
}
CONNECTED = VOCABULARY | {"settings", "connector", "connection"}
LIBRARY = CONNECTED | {"messaging", "pool", "factory", "direct", "manager", "manager_parts", "monitor"}
INSTRUMENTS = {"wire", "brokers", "trials", "audit", "diagnosis"}
MAY_IMPORT = {  # each part, and the other parts that it may import
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    "settings": VOCABULARY,
    "connector": VOCABULARY | {"settings"},
    "connection": VOCABULARY | {"settings", "connector"},
    "messaging": CONNECTED,
    "pool": CONNECTED,
    "factory": CONNECTED,
    "direct": CONNECTED | {"factory"},
    "monitor": CONNECTED | {"messaging"},
    "manager_parts": CONNECTED | {"messaging"},
    "manager": CONNECTED | {"messaging", "manager_parts", "monitor"},
    "": LIBRARY,  # labkit/__init__.py
    "integrations": LIBRARY,
    "rpc": CONNECTED | {"messaging", "pool"},
    "wire": VOCABULARY | {"settings"},
    "brokers": VOCABULARY | {"settings"},
    "diagnosis": VOCABULARY,
    "trials": LIBRARY | {"wire", "brokers"},
    "audit": LIBRARY | {"brokers"},
    "lab": LIBRARY | INSTRUMENTS,
    "cli": VOCABULARY | {"lab"},
}
MAY_IMPORT_PIKA = {
    "brokers": ["handshake", "proof"],
    "connection": [
        "blame",
        "channel_confirms",
        "channel_deliveries",
        "channel_io",
        "io_thread",
        "lifecycle",
        "link",
        "loop",
        "opening",
        "refusals",
        "topology_replay",
    ],
    "connector": [
        "abandon",
        "blocking",
        "callbacks",
        "contained",
        "coroutines",
        "libev",
        "plan",
        "private_pika",
        "probe",
        "twisted",
    ],
    "content": ["properties"],
    "diagnosis": ["cases", "explain", "explanations"],
    "direct": ["aio", "aio_link", "confirming", "sync", "sync_consumer", "sync_link"],
    "factory": [""],
    "integrations": ["fastapi", "flask", "unavailable"],
    "lab": [
        *(f"exercises.notebook_0{number}" for number in range(8)),
        "atlas.acts",
        "atlas.attacker",
        "atlas.triggers",
    ],
    "manager": [""],
    "messaging": ["confirm_channel", "consumer_channel", "consumer_io", "publisher_io", "role_channel"],
    "settings": ["settings", "tcp_options"],
    "topology": [""],
    "verdicts": [""],
}


def name_of(path, package):
    inside = path.relative_to(package).with_suffix("").parts
    return ".".join(inside[:-1] if inside[-1] == "__init__" else inside)


def imports(package):
    """Return each module's name in the package, and the names of what it imports, Pika's as "pika"."""
    texts = {name_of(path, package): ast.parse(path.read_text()) for path in package.rglob("*.py")}
    found = {name: set() for name in texts}
    for name, tree in texts.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                there = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                there = [f"{node.module}.{each.name}" for each in node.names]
            else:
                continue
            for each in there:
                top, _, inside = each.partition(".")
                if top == "pika":
                    found[name].add("pika")
                elif top == package.name:
                    found[name].add(inside if inside in texts else inside.rpartition(".")[0])
    return found


def circles(graph):
    """Return what cannot be put in an order in which nothing comes before what it imports."""
    left = {name: there & graph.keys() - {name} for name, there in graph.items()}
    while free := {name for name, there in left.items() if not there & left.keys()}:
        left = {name: there for name, there in left.items() if name not in free}
    return left


def astray(graph, table):
    part = {name: name.partition(".")[0] for name in graph}
    return sorted(
        f"{name} imports {each}"
        for name, there in graph.items()
        for each in there - {"pika"}
        if each.partition(".")[0] not in {*table[part[name]], part[name]}
    )


def test_every_part_imports_only_what_its_row_names():
    graph = imports(PACKAGE)
    assert len(graph) > 150
    assert {name.partition(".")[0] for name in graph} == set(MAY_IMPORT)
    assert astray(graph, MAY_IMPORT) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(imports(PACKAGE)) == {}


def test_pika_is_imported_by_these_files_and_no_others():
    users = {name for name, there in imports(PACKAGE).items() if "pika" in there}
    named = {f"{part}.{each}".rstrip(".") for part, modules in MAY_IMPORT_PIKA.items() for each in modules}
    assert users == named


@pytest.fixture
def house(tmp_path):
    """Write a package of these modules, and return its folder."""

    def build(**texts):
        package = tmp_path / "labkit"
        package.mkdir()
        for name, text in texts.items():
            (package / f"{name}.py").write_text(text)
        return package

    return build


def test_an_import_against_the_direction_is_found(house):
    package = house(
        errors="from labkit.pool import Lease", pool="from labkit import errors\nfrom labkit.values import x", values=""
    )
    assert astray(imports(package), MAY_IMPORT) == ["errors imports pool"]


def test_an_import_in_a_function_counts(house):
    package = house(errors="def f():\n    import labkit.lab\n", lab="")
    assert astray(imports(package), MAY_IMPORT) == ["errors imports lab"]


def test_a_circle_of_three_is_found(house):
    package = house(a="from labkit import b", b="import labkit.c", c="from labkit.a import x", d="from labkit import a")
    assert set(circles(imports(package))) == {"a", "b", "c", "d"}
    assert circles({"a": {"b"}, "b": set()}) == {}


def test_tests_of_a_package_stand_in_a_folder_of_its_name():
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders <= set(MAY_IMPORT)
    assert {"settings", "connector", "connection", "messaging", "pool", "direct", "wire", "brokers", "lab"} <= folders


def test_architecture_md_names_files_that_exist_and_every_part():
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    files = re.findall(r"`((?:[a-z_]+/)+[a-z_]+)`", text)
    assert len(files) > 30
    assert [each for each in files if not (PACKAGE / f"{each}.py").exists()] == []
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert [each for each in packages if f"{each}/" not in text] == []
