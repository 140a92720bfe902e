"""Every private attribute of Pika that labkit reaches for is still there, and is reached for in one place only."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import labkit
from labkit import private_pika
from labkit.private_pika import NEEDED

PACKAGE = Path(labkit.__file__).parent


@pytest.mark.parametrize(("where", "attribute", "why"), NEEDED, ids=[attribute for _, attribute, _ in NEEDED])
def test_the_attribute_is_there(where, attribute, why):
    module, _, name = where.partition(":")
    cls = getattr(importlib.import_module(module), name)
    assert why
    assert hasattr(cls, attribute) or re.search(rf"self\.{attribute}\b", inspect.getsource(cls))


def test_each_one_is_explained_where_it_is_used():
    text = inspect.getsource(private_pika)
    for _, attribute, _ in NEEDED:
        assert text.count(attribute) >= 2


def test_no_other_module_spells_a_private_name_of_pika():
    names = [attribute for _, attribute, _ in NEEDED]
    modules = [path for path in PACKAGE.rglob("*.py") if path.name != "private_pika.py"]
    assert len(modules) > 20
    found = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in modules
        for name in names
        if re.search(rf"\b(connection|channel|impl|_connection|pika)\)?\.{name}\b", path.read_text())
    ]
    assert found == []
